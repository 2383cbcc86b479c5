"""The same numbers and pictures for TensorBoard: ``tensorboard --logdir RUN``.

Events are written here and now. TensorBoard's own writer does it in a thread, which meets a full
disk with a traceback and loses what it holds when the process is killed.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.tensorboard.summary import image, scalar

from distill.errors import DistillError

_LARGEST = 256  # the whole pictures are in the run's folder


class TensorBoard:
    """An event file in a run's folder, one for each start.

    Args:
        folder: the run's.
        purge: TensorBoard hides what earlier event files hold from this update on; the run makes
            it again.

    Raises:
        DistillError: it cannot be written.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        # Read in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{os.getpid()}"
        self.path = folder / "tensorboard" / name
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, group: str, record: dict[str, float]) -> None:
        """A record's numbers, as ``group/name``, at its ``update``."""
        for name, value in record.items():
            if name != "update":
                summary = scalar(f"{group}/{name}", value)  # type: ignore[no-untyped-call]
                self._summary(summary, int(record["update"]))

    def pictures(self, name: str, pictures: Tensor, update: int) -> None:
        """Pictures (B, 3, H, W) in [0, 1] as one grid, made smaller than 256 pixels a side."""
        smaller = max(1, math.ceil(max(pictures.shape[-2:]) / _LARGEST))
        shown = avg_pool2d(pictures, smaller)
        summary = image(name, shown, dataformats="NCHW")  # type: ignore[no-untyped-call]
        self._summary(summary, update)

    def _summary(self, summary: Any, update: int) -> None:
        self._write(Event(step=update, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise DistillError(f"{self.path} cannot be written: {error}") from error
