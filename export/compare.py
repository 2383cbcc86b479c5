"""How far an exported output is from torch's, and the table that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

# Identical pictures have no finite PSNR; one level off in one value of a megapixel is 113 dB.
MOST_DB = 120.0


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost.

    Attributes:
        relative_rms: of float outputs.
        levels: of 255, the largest difference of any pixel.
        picture_db: the least PSNR of a whole picture.
    """

    relative_rms: float
    levels: float
    picture_db: float


@dataclass(frozen=True)
class Comparison:
    """One output of one component in one runtime at one batch and size.

    ``tolerance`` bounds the figure named by ``measure``: ``relative_rms`` for float outputs,
    ``max_abs``, in levels of 255, for pixels.
    """

    runtime: str
    component: str
    output: str
    batch: int
    size: str | None
    max_abs: float
    relative_rms: float
    measure: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within tolerance; a NaN is not."""
        return bool(getattr(self, self.measure) <= self.tolerance)

    def __str__(self) -> str:
        return (
            f"{self.component} ({self.output}) {_where(self)}: {self.measure} "
            f"{getattr(self, self.measure):.2g}, tolerance {self.tolerance:.2g}"
        )


@dataclass(frozen=True)
class Invariance:
    """Whether each sample of a batch has the bits that it has alone."""

    runtime: str
    component: str
    batch: int
    size: str | None
    identical: bool

    @property
    def passed(self) -> bool:
        """The same bits."""
        return self.identical

    def __str__(self) -> str:
        return f"{self.component} {_where(self)}: a sample differs from the same sample alone"


@dataclass(frozen=True)
class Picture:
    """A whole picture of one size against diffusers' on the same noise."""

    runtime: str
    size: str
    psnr_db: float
    tolerance_db: float

    @property
    def passed(self) -> bool:
        """Within tolerance."""
        return bool(self.psnr_db >= self.tolerance_db)

    def __str__(self) -> str:
        return (
            f"whole picture in {self.runtime} at {self.size}: PSNR {self.psnr_db:.1f} dB, "
            f"at least {self.tolerance_db:.0f} dB expected"
        )


Check = Comparison | Invariance | Picture


def compare(
    actual: NDArray[Any],
    expected: NDArray[Any],
    tolerance: Tolerance,
    **where: Any,
) -> Comparison:
    """Compare one output; pixels (uint8) by their largest difference, others by relative RMS."""
    pixels = expected.dtype == np.uint8
    return Comparison(
        max_abs=max_abs(actual, expected),
        relative_rms=relative_rms(actual, expected),
        measure="max_abs" if pixels else "relative_rms",
        tolerance=tolerance.levels if pixels else tolerance.relative_rms,
        **where,
    )


def max_abs(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference; infinite when the shapes differ or a value is not finite."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return _rounded(np.abs(_difference(actual, expected)).max())


def relative_rms(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """RMS of the difference over RMS of what was expected; 0 where both are equal.

    Infinite when the shapes differ or a value is not finite.
    """
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    error = float(np.sqrt(np.square(_difference(actual, expected)).mean()))
    scale = float(np.sqrt(np.square(expected.astype(np.float64)).mean()))
    if error == 0.0:
        return 0.0
    return _rounded(error / scale) if scale else float("inf")


def psnr_db(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """PSNR of two uint8 pictures in dB, at most ``MOST_DB``."""
    if actual.shape != expected.shape:
        return 0.0
    mean_square = float(np.square(_difference(actual, expected)).mean())
    if mean_square == 0.0:
        return MOST_DB
    return min(MOST_DB, _rounded(10 * np.log10(255.0**2 / mean_square)))


def _difference(actual: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    return actual.astype(np.float64) - expected.astype(np.float64)


def _rounded(value: float) -> float:
    """To four significant digits: more would be noise in export.json."""
    return float(f"{value:.4g}")


def _where(check: Comparison | Invariance) -> str:
    at = f"batch {check.batch}" + (f", {check.size}" if check.size else "")
    return f"in {check.runtime} at {at}"


def as_json(check: Check) -> dict[str, Any]:
    """All figures of a check, ``null`` for infinite ones, and whether it passed."""
    figures = {key: None if value == float("inf") else value for key, value in vars(check).items()}
    return {**figures, "passed": check.passed}


def verification_table(checks: tuple[Check, ...]) -> Table:
    """The worst of every output in every runtime, and in red all that is beyond its tolerance."""
    table = Table(title="compared with torch and diffusers", box=None, padding=(0, 1, 0, 0))
    for column in ("runtime", "output", "worst at"):
        table.add_column(column, no_wrap=True)
    for column in ("max abs", "rel. RMS", "limit", ""):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[tuple[str, ...], list[Check]] = {}
    for check in checks:
        component = getattr(check, "component", "")  # two of them have an output called image
        rows.setdefault((check.runtime, component, *_cells(check)[:1]), []).append(check)
    for row in rows.values():
        for check in [each for each in row if not each.passed] or [max(row, key=_badness)]:
            mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
            table.add_row(check.runtime, *_cells(check), mark)
    return table


def _badness(check: Check) -> float:
    if isinstance(check, Picture):
        return -check.psnr_db
    if isinstance(check, Invariance):
        return check.batch
    return check.max_abs if check.measure == "max_abs" else check.relative_rms


def _cells(check: Check) -> tuple[str, ...]:
    if isinstance(check, Picture):
        least = f"{check.tolerance_db:.0f} dB"
        return ("picture", f"1 x {check.size}", "", f"{check.psnr_db:.1f} dB", least)
    where = f"{check.batch} x {check.size}" if check.size else f"batch {check.batch}"
    if isinstance(check, Invariance):
        return (check.component, where, "", "", "as alone")
    pixels = check.measure == "max_abs"
    limit = f"{check.tolerance:.0f} of 255" if pixels else f"{check.tolerance:.0e}"
    return (check.output, where, f"{check.max_abs:.1e}", f"{check.relative_rms:.1e}", limit)
