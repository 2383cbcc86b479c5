"""Cumulative numbers of one engine, as a metrics page wants them."""

import threading
from bisect import bisect_left
from typing import Any

COUNTERS = (
    "executions",
    "steps",
    "pictures",
    "partials",
    "cancelled",
    "expired",
    "failed",
    "not_finite",
    "steps_saved",
)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
HISTOGRAMS = {
    "queue_seconds": SECONDS,
    "text_seconds": SECONDS,
    "picture_seconds": SECONDS,
    "step_seconds": SECONDS,
    "decode_seconds": SECONDS,
    "tiny_decode_seconds": SECONDS,
    "batch_size": BATCHES,
}


class Histogram:
    """How many values lie in each bucket; a bound belongs to the bucket below it."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def to_json(self) -> dict[str, Any]:
        """``counts`` has one entry more than ``bounds``."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class Counters:
    """All of an engine's counters and histograms; for use by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAMS.items()}

    def __getitem__(self, name: str) -> int:
        return self._counters[name]

    def add(self, name: str, amount: int = 1) -> None:
        """Count up."""
        with self._lock:
            self._counters[name] += amount

    def observe(self, name: str, *values: float) -> None:
        """Put values into a histogram."""
        with self._lock:
            for value in values:
                self._histograms[name].observe(value)

    def to_json(self) -> dict[str, Any]:
        """``counters`` and ``histograms``, all of one moment."""
        with self._lock:
            return {
                "counters": dict(self._counters),
                "histograms": {name: each.to_json() for name, each in self._histograms.items()},
            }
