"""What many values amount to."""

from collections.abc import Sequence
from statistics import median

import numpy as np


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
