"""Line charts over a few named places on the x axis, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.errors import BenchError

_WIDTH, _HEIGHT, _MARGIN, _LEGEND, _LARGER = 420, 340, 56, 220, 3
_INK, _GRID = (40, 40, 48), (226, 226, 230)
_COLOURS = (
    (31, 119, 180),
    (214, 39, 40),
    (44, 160, 44),
    (255, 127, 14),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (23, 190, 207),
    (188, 189, 34),
    (90, 90, 100),
    (0, 0, 0),
    (170, 130, 200),
    (120, 190, 130),
)
_TICKS = 5


@dataclass(frozen=True)
class Chart:
    """Lines by name, a value for each place; the axis goes from ``low`` to ``high``."""

    title: str
    places: Sequence[str]
    lines: Mapping[str, Sequence[float]]
    low: float
    high: float


def save_charts(charts: Sequence[Chart], path: Path) -> None:
    """Write charts of the same lines side by side, with one legend, as a PNG.

    Values beyond an axis are drawn at its end.

    Raises:
        BenchError: it cannot be written.
    """
    size = (len(charts) * _WIDTH + _LEGEND, _HEIGHT)
    picture = Image.new("RGB", (_LARGER * size[0], _LARGER * size[1]), "white")
    draw = ImageDraw.Draw(picture)
    for i, chart in enumerate(charts):
        _draw(draw, chart, i * _WIDTH)
    for row, name in enumerate(charts[0].lines):
        left, top = len(charts) * _WIDTH, 40 + 22 * row
        _line(draw, [(left, top), (left + 22, top)], _COLOURS[row % len(_COLOURS)])
        _text(draw, (left + 30, top), name, "lm")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shrunk = picture.resize(size, Image.Resampling.LANCZOS)  # smooths the lines
        shrunk.save(temporary, format="PNG", optimize=True)
        temporary.replace(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error}") from error


def _draw(draw: ImageDraw.ImageDraw, chart: Chart, left: int) -> None:
    right, top, bottom = left + _WIDTH - 20, 40, _HEIGHT - 40
    left += _MARGIN

    def x(place: int) -> float:
        return left + (right - left) * (place + 0.5) / len(chart.places)

    def y(value: float) -> float:
        part = (value - chart.low) / (chart.high - chart.low)
        return bottom - (bottom - top) * min(max(part, 0.0), 1.0)

    _text(draw, ((left + right) / 2, 18), chart.title, "mm")
    for tick in range(_TICKS + 1):
        value = chart.low + (chart.high - chart.low) * tick / _TICKS
        _line(draw, [(left, y(value)), (right, y(value))], _GRID, 1)
        _text(draw, (left - 8, y(value)), f"{value:.3g}", "rm")
    for place, name in enumerate(chart.places):
        _text(draw, (x(place), bottom + 16), name, "mm")
    for colour, values in zip(_COLOURS * len(chart.lines), chart.lines.values(), strict=False):
        points = [(x(place), y(value)) for place, value in enumerate(values)]
        _line(draw, points, colour)
        for across, down in points:
            box = [(across - 3) * _LARGER, (down - 3) * _LARGER]
            draw.ellipse((*box, box[0] + 6 * _LARGER, box[1] + 6 * _LARGER), fill=colour)


def _line(
    draw: ImageDraw.ImageDraw,
    points: Sequence[tuple[float, float]],
    colour: tuple[int, int, int],
    width: int = 2,
) -> None:
    larger = [(_LARGER * x, _LARGER * y) for x, y in points]
    draw.line(larger, fill=colour, width=width * _LARGER, joint="curve")


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str) -> None:
    font = ImageFont.load_default(13 * _LARGER)
    draw.text((_LARGER * at[0], _LARGER * at[1]), text, fill=_INK, font=font, anchor=anchor)
