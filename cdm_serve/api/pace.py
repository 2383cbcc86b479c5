"""How fast the engine really is, against what it measured of itself at start."""

import time

# About so many of the latest pictures count.
MEMORY = 100
# The engine's own measurement counts like one second of evidence.
PRIOR = 1.0
# With fewer in line the engine waits for work, and not the work for the engine.
CROWD = 8


class Pace:
    """Wall seconds per second of work; above 1 when other programs use the machine too."""

    def __init__(self) -> None:
        self._seconds = PRIOR
        self._work = PRIOR
        self._last: float | None = None

    @property
    def seconds_per_work(self) -> float:
        """1.0 until there is evidence."""
        return self._seconds / self._work

    def finished(self, work: float) -> None:
        """A picture was finished."""
        now = time.monotonic()
        if self._last is not None:
            keep = 1.0 - 1.0 / MEMORY
            self._seconds = keep * self._seconds + (now - self._last)
            self._work = keep * self._work + work
        self._last = now

    def interrupted(self) -> None:
        """The time until the next picture says nothing: there was no crowd, or no engine."""
        self._last = None
