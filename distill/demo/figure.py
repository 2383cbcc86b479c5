"""Figures by matplotlib, which nothing else here needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import DistillError
from distill.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty one, its sides in inches.

    Raises:
        DistillError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DistillError("matplotlib is missing: pip install 'cdm-serve[demo]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write it as a PNG of 100 pixels an inch.

    Raises:
        DistillError: it cannot be written.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
