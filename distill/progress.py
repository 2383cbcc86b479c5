"""What a person sees while it trains."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SHOWN = ("fake", "ca", "dm", "cdm", "distance", "brightness")
# Updates of a large model take minutes: rich's own half a minute would never see two.
_SPEED_SECONDS = 3600.0


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
