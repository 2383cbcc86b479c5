"""The report at the end of a run: ``report.html`` beside the log and the grids that it shows."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.files import whole_file

_CURVES = {
    "distance to the guided teacher": ("distance",),
    "fake teacher's relative gap to the teacher": ("gap",),
    "brightness": ("brightness",),
    "contrast": ("contrast",),
    "latents' mean": ("sample_mean",),
    "latents' standard deviation": ("sample_std",),
    "losses of the student": ("ca", "dm", "cdm"),
    "loss of the fake teacher": ("fake",),
    "gradients": ("gradient", "fake_gradient"),
}
_COLOURS = ("#1668b0", "#c2410c", "#3f7d20")
_WIDTH, _HEIGHT, _MARGIN = 420, 180, 36
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1320px; color: #222 }
svg { margin: 0 12px 12px 0; font-size: 11px } img { width: 300px } td { vertical-align: top }
th { text-align: left; font-weight: 600; padding-right: 12px }
"""

Record = dict[str, float]


def write_report(folder: Path, records: Sequence[Record], saved: int) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        folder: the run's, with its grids.
        records: the log's.
        saved: the student's number of updates.

    Raises:
        DistillError: it cannot be written.
    """
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(folder.name)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(folder.name)}</h1>",
        f"<p>{_choice(records, saved)}</p>",
        *(_chart(title, names, records, saved) for title, names in _CURVES.items()),
        *_grids(folder),
    ]
    path = folder / "report.html"
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _choice(records: Sequence[Record], saved: int) -> str:
    """Which update the student is from, and why."""
    distances = {round(r["update"]): r["distance"] for r in records if "distance" in r}
    if saved not in distances:
        return f"The student is that after update {saved}, the last; nothing was evaluated there."
    last = max(distances)
    why = f"The student is that after update {saved}, at distance {distances[saved]:.4g}"
    if saved == last:
        return f"{why}, the last."
    return (
        f"{why}: the nearest to the guided teacher of {len(distances)} evaluations; "
        f"after update {last}, the last, it is {distances[last]:.4g}."
    )


def _chart(title: str, names: Sequence[str], records: Sequence[Record], saved: int) -> str:
    """Curves over updates; dashed the guided teacher's level, dotted the student that was saved."""
    curves = {name: [(r["update"], r[name]) for r in records if name in r] for name in names}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    teacher = [r[f"teacher_{name}"] for name in names for r in records if f"teacher_{name}" in r]
    values = [y for points in curves.values() for _, y in points] + teacher
    low, high = min(values), max(values)
    end = max(1.0, *(x for points in curves.values() for x, _ in points))

    def x_of(update: float) -> float:
        return round(_MARGIN + (_WIDTH - 2 * _MARGIN) * update / end, 1)

    def y_of(value: float) -> float:
        part = (value - low) / (high - low) if high > low else 0.5
        return round(_HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * part, 1)

    def line(x1: float, y1: float, x2: float, y2: float, dash: str) -> str:
        return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#888" stroke-dasharray="{dash}"/>'

    drawn = [line(x_of(saved), y_of(low), x_of(saved), y_of(high), "2 3")]
    drawn += [line(x_of(0), y_of(level), x_of(end), y_of(level), "7 4") for level in teacher]
    for colour, (name, points) in zip(_COLOURS, curves.items(), strict=False):
        way = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in points)
        drawn.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        x, y = points[-1]
        drawn.append(f'<text x="{x_of(x) + 3}" y="{y_of(y)}" fill="{colour}">{name}</text>')
    axes = (
        f'<text x="{_MARGIN}" y="14" font-weight="600">{title}</text>'
        f'<text x="2" y="{y_of(high)}">{high:.3g}</text>'
        f'<text x="2" y="{y_of(low)}">{low:.3g}</text>'
        f'<text x="{x_of(end)}" y="{_HEIGHT - 8}" text-anchor="end">{end:.0f} updates</text>'
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}">{axes}{"".join(drawn)}</svg>'


def _grids(folder: Path) -> Iterator[str]:
    """The previews, a row for each update and a column for each number of steps."""
    grids: dict[int, dict[int, str]] = {}
    for path in folder.glob("preview-*-*.png"):
        steps, update = (int(number) for number in path.stem.split("-")[1:])
        grids.setdefault(update, {})[steps] = path.name
    if (folder / "teacher-00000000.png").exists():
        yield '<h2>The guided teacher</h2><img src="teacher-00000000.png">'
    if grids:
        yield "<h2>The student</h2><table>"
        for update in sorted(grids):
            row = grids[update]
            cells = (
                f'{steps} steps<br><img src="{row[steps]}" loading="lazy">' for steps in sorted(row)
            )
            yield f"<tr><th>{update}</th><td>" + "</td><td>".join(cells) + "</td></tr>"
        yield "</table>"
