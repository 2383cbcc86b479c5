"""What was answered while the clock ran, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

# The beginning of a run, while the line fills, says nothing about what follows.
RAMP = 0.2


@dataclass
class Tally:
    """Latencies in milliseconds of what was answered in the window, by the number of steps.

    ``answered`` counts those outside the window too: they are what the CPU time was spent on.
    """

    seconds: float
    begin: float = field(default_factory=time.perf_counter)
    latencies: dict[int, list[float]] = field(default_factory=dict)
    answered: int = 0

    @property
    def open(self) -> bool:
        """Whether new requests are to be sent; the clock runs from ``RAMP`` of the time on."""
        return time.perf_counter() < self.begin + (1 + RAMP) * self.seconds

    def add(self, steps: int, sent: float, *, planned: bool = False) -> None:
        """A request of this moment of ``perf_counter`` was answered now.

        It counts when this is in the window; where it was ``planned`` beforehand, when that was.
        """
        now = time.perf_counter()
        self.answered += 1
        moment = sent if planned else now
        if 0 <= moment - self.begin - RAMP * self.seconds < self.seconds:
            self.latencies.setdefault(steps, []).append(1e3 * (now - sent))

    def to_json(self) -> dict[str, Any]:
        """Images a second, and milliseconds of all and of each number of steps."""
        everything = [value for values in self.latencies.values() for value in values]
        return {
            "images_per_second": round(len(everything) / self.seconds, 2),
            "milliseconds": percentiles(everything),
            "by_steps": {
                str(steps): {"count": len(values), **percentiles(values)}
                for steps, values in sorted(self.latencies.items())
            },
        }


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95 and p99; nothing of nothing."""
    if not milliseconds:
        return {}
    return {f"p{p}": round(float(np.percentile(milliseconds, p)), 3) for p in (50, 90, 95, 99)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of the rounds."""
    return {
        "median": round(median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }
