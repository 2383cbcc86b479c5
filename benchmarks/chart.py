"""Line charts over a few named places on the x axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.record import write_whole


@dataclass(frozen=True)
class Chart:
    """Lines by name, a value for each place; what lies above ``high`` is cut off."""

    title: str
    places: Sequence[str]
    lines: Mapping[str, Sequence[float]]
    high: float | None = None


def save_charts(charts: Sequence[Chart], path: Path) -> None:
    """Write charts of the same lines side by side, with one legend, as a PNG.

    Raises:
        BenchError: it cannot be written.
    """
    figure = Figure(figsize=(4.2 * len(charts) + 2.2, 3.4), layout="constrained")
    for axes, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        for name, values in chart.lines.items():
            axes.plot(chart.places, values, marker="o", markersize=4, label=name)
        axes.set_title(chart.title, fontsize="medium")
        axes.set_ylim(0, chart.high)
        axes.grid(axis="y", alpha=0.4)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize="small")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_whole(path, picture.getvalue())
