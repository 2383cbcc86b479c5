"""Draws the 2-D toy: points of each class, a panel for each distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill.files import whole_file

_SIDE, _GAP, _CAPTION, _LARGER = 250, 10, 54, 3
_EXTENT = 2.2
_INK, _FRAME = (40, 40, 48), (200, 200, 206)
_COLOURS = ((214, 69, 65), (38, 120, 178), (64, 145, 80))


@dataclass(frozen=True)
class Panel:
    """Points (CLASSES * n, 2), class after class, and two lines of text."""

    title: str
    note: str
    points: Tensor


def save_panels(panels: Sequence[Panel], path: Path) -> None:
    """Write the panels side by side as a PNG. One whose points run away is drawn at its own scale.

    Raises:
        DistillError: it cannot be written.
    """
    sheet = Image.new("RGB", (len(panels) * (_SIDE + _GAP) + _GAP, _SIDE + _CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, panel in enumerate(panels):
        left = _GAP + i * (_SIDE + _GAP)
        extent = max(_EXTENT, 1.05 * panel.points.abs().quantile(0.995).item())
        sheet.paste(_scatter(panel.points, extent), (left, _GAP))
        scale = "" if extent == _EXTENT else f", axes {extent / _EXTENT:.0f} times as long"
        lines = f"{panel.title}{scale}\n{panel.note}"
        draw.multiline_text((left, _SIDE + _GAP + 4), lines, fill=_INK, font=font)
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _scatter(points: Tensor, extent: float) -> Image.Image:
    """Drawn larger and shrunk, which smooths the dots."""
    side, radius = _SIDE * _LARGER, 1.4 * _LARGER
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, side - 1, side - 1), outline=_FRAME, width=_LARGER)
    for colour, own in zip(_COLOURS, points.chunk(len(_COLOURS)), strict=True):
        for x, y in ((own / extent + 1) * side / 2).tolist():
            centre = (x - radius, side - y - radius, x + radius, side - y + radius)
            draw.ellipse(centre, fill=colour)
    return picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
