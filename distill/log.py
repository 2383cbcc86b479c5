"""What a person sees of a run: ``log.jsonl``, picture grids, TensorBoard's events, a progress bar.

All that is written is consistent with the checkpoint that a run continues from.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.tensorboard import SummaryWriter

from distill.errors import DistillError
from distill.files import save_grid, whole_file

_LARGEST = 256  # pixels a side in TensorBoard; the whole pictures are in the run's folder
_SHOWN = ("loss", "fake", "ca", "dm", "cdm", "distance", "brightness")
# Updates of a large model take minutes: rich's own half a minute would never see two.
_SPEED_SECONDS = 3600.0


class RunLog:
    """The log of a run's folder.

    Args:
        folder: the run's.
        updates: what is logged about later updates is dropped, the run makes it again; everything
            is if there were none.
        main: whether this process writes; the others' logs are silent.

    Raises:
        DistillError: the folder or a file cannot be written.
    """

    def __init__(self, folder: Path, updates: int, main: bool = True) -> None:
        self.folder, self.path, self.main = folder, folder / "log.jsonl", main
        self.records = [r for r in _records(self.path) if updates and r["update"] <= updates]
        if main:
            with whole_file(self.path) as temporary:
                lines = [json.dumps(record) + "\n" for record in self.records]
                temporary.write_text("".join(lines), encoding="utf-8")
            with _writing(folder / "tensorboard"):
                # TensorBoard hides what earlier files hold from the purged step on.
                self.events = SummaryWriter(
                    folder / "tensorboard", purge_step=updates + 1 if updates else 0
                )

    def append(self, record: dict[str, float], group: str = "training") -> None:
        """Add a line; ``record`` holds at least ``update``. TensorBoard has it under ``group``."""
        self.records.append(record)
        if not self.main:
            return
        with _writing(self.path), self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        with _writing(self.events.log_dir):
            for name, value in record.items():
                if name != "update":
                    self.events.add_scalar(f"{group}/{name}", value, int(record["update"]))
            self.events.flush()

    def pictures(self, name: str, pictures: Tensor, update: int) -> None:
        """Write pictures (B, 3, H, W) in [0, 1] as ``<name>-<update>.png``, in a grid."""
        if not self.main:
            return
        pictures = pictures.float().nan_to_num().clamp(0, 1)  # of a run that went wrong
        save_grid(pictures, self.folder / f"{name}-{update:08d}.png")
        smaller = max(1, math.ceil(max(pictures.shape[-2:]) / _LARGEST))
        with _writing(self.events.log_dir):
            self.events.add_images(name, avg_pool2d(pictures, smaller), update)
            self.events.flush()

    def least(self, name: str) -> float:
        """The smallest number of this name so far; infinity if there is none."""
        return min((r[name] for r in self.records if name in r), default=math.inf)


@contextmanager
def _writing(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DistillError(f"{path} cannot be written: {error}") from error


def _records(path: Path) -> list[dict[str, float]]:
    """The lines of a log, without any that a kill cut short."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"{path} cannot be read: {error}") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("update"), int | float):
            records.append(record)
    return records


class TrainingProgress:
    """A progress bar on a terminal; one line a record where there is none.

    Args:
        total: student updates of the whole run.
        done: updates made before.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("updates"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            speed_estimate_period=_SPEED_SECONDS,
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=total, completed=done, shown="")
        self.latest: dict[str, float] = {}
        self.total, self.done, self.started = total, done, time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def report(self, record: dict[str, float]) -> None:
        """Show a logged record."""
        self.latest |= record
        parts = [f"{name} {self.latest[name]:.4g}" for name in _SHOWN if name in self.latest]
        parts.append(f"{self.latest.get('samples_per_second', 0):.1f} samples/s")
        shown = "  ".join(parts)
        self.progress.update(self.task, completed=record["update"], shown=shown)
        if not self.console.is_terminal and "samples_per_second" in record:
            self.console.print(
                f"update {record['update']:.0f}  {shown}  {self._left(record['update'])} left",
                soft_wrap=True,
            )

    def _left(self, update: float) -> timedelta:
        """The time still to go, at the speed since the start."""
        seconds = (time.monotonic() - self.started) / max(1, update - self.done)
        return timedelta(seconds=round(seconds * (self.total - update)))
