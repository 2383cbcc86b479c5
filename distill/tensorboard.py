"""The same numbers and pictures for TensorBoard: ``tensorboard --logdir RUN``."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.tensorboard.writer import SummaryWriter

from distill.errors import DistillError

_LARGEST = 256  # the whole pictures are in the run's folder


class TensorBoard:
    """Event files in a run's folder.

    Args:
        folder: the run's.
        purge: TensorBoard hides what earlier event files hold from this update on; the run makes
            it again.

    Raises:
        DistillError: they cannot be written.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        self.folder = folder / "tensorboard"
        try:
            self.writer = SummaryWriter(str(self.folder), purge_step=purge)
        except OSError as error:
            raise self._unwritable(error) from error

    def scalars(self, group: str, record: dict[str, float]) -> None:
        """A record's numbers, as ``group/name``, at its ``update``."""
        update = int(record["update"])
        for name, value in record.items():
            if name != "update":
                self.writer.add_scalar(f"{group}/{name}", value, update)
        self._flush()

    def pictures(self, name: str, pictures: Tensor, update: int) -> None:
        """Pictures (B, 3, H, W) in [0, 1] as one grid, made smaller than 256 pixels a side."""
        smaller = max(1, math.ceil(max(pictures.shape[-2:]) / _LARGEST))
        self.writer.add_images(name, avg_pool2d(pictures, smaller), update)
        self._flush()

    def _flush(self) -> None:
        """So that a killed process leaves all that its checkpoints know of."""
        try:
            self.writer.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DistillError:
        return DistillError(f"{self.folder} cannot be written: {error}")
