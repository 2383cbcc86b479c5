"""What many values amount to, and how they are told."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import numpy as np
from rich.table import Table

Each = TypeVar("Each")


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


def spread_text(spread: Mapping[str, float]) -> str:
    return "{median:.2f} ({low:.2f} - {high:.2f})".format(**spread)


def figure(run: Any, keys: Iterable[str]) -> float | None:
    """What stands under these keys; None without a run."""
    for key in keys:
        run = None if run is None else run[key]
    return None if run is None else float(run)


def in_turn(names: Sequence[Each], number: int) -> tuple[Each, ...]:
    """All of them, in another order in each round, so that nobody always follows the same one."""
    turn = number % len(names)
    return (*names[turn:], *names[:turn])


def table_of(title: str, names: Sequence[str]) -> Table:
    """A table of numbers behind one column of words."""
    table = Table(title=title)
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left")
    return table
