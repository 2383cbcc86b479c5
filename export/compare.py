"""How far an exported output is from torch's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Identical pictures have no finite PSNR; one level off in one value of a megapixel is 113 dB.
MOST_DB = 120.0


@dataclass(frozen=True)
class Comparison:
    """One output of one component at one batch and size.

    ``tolerance`` bounds the figure named by ``measure``: ``relative_rms`` for float outputs,
    ``max_abs``, in levels of 255, for pixels.
    """

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
        where = f"batch {self.batch}" + (f", {self.size}" if self.size else "")
        return (
            f"{self.component} ({self.output}) at {where}: {self.measure} "
            f"{getattr(self, self.measure):.2g}, tolerance {self.tolerance:.2g}"
        )


@dataclass(frozen=True)
class Picture:
    """A whole picture of one size against diffusers' on the same noise."""

    size: str
    psnr_db: float
    tolerance_db: float

    @property
    def passed(self) -> bool:
        """Within tolerance."""
        return bool(self.psnr_db >= self.tolerance_db)

    def __str__(self) -> str:
        return (
            f"whole picture at {self.size}: PSNR {self.psnr_db:.1f} dB, "
            f"at least {self.tolerance_db:.0f} dB expected"
        )


@dataclass(frozen=True)
class Verification:
    """All that was compared for one export."""

    components: tuple[Comparison, ...]
    pictures: tuple[Picture, ...]

    @property
    def failures(self) -> list[Comparison | Picture]:
        """What is beyond its tolerance."""
        everything: tuple[Comparison | Picture, ...] = (*self.components, *self.pictures)
        return [each for each in everything if not each.passed]

    def to_json(self) -> dict[str, Any]:
        """The ``verification`` entry of export.json; the picture is the worst of all sizes."""
        worst = min(self.pictures, key=lambda picture: picture.psnr_db)
        return {"components": [asdict(c) for c in self.components], "picture": asdict(worst)}


def max_abs(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference; infinite when the shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    return _rounded(np.abs(_difference(actual, expected)).max())


def relative_rms(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """RMS of the difference over RMS of what was expected; 0 where both are equal."""
    if actual.shape != expected.shape:
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
