from pathlib import Path

import pytest
from PIL import Image

from benchmarks.chart import Chart, save_charts
from benchmarks.errors import BenchError


def test_a_line_is_where_its_values_are(tmp_path: Path) -> None:
    chart = Chart("t", ["1", "2"], {"flat": [0.5, 0.5]}, low=0.0, high=1.0)
    save_charts([chart], tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        # Between the two places, half-way up the axis that goes from y = 300 to y = 40.
        red, _, blue = picture.getpixel((228, 170))
        assert red < 60 < 150 < blue
        assert picture.getpixel((228, 150)) == (255, 255, 255)


def test_says_when_it_cannot_be_written(tmp_path: Path) -> None:
    chart = Chart("t", ["1"], {"a": [1.0]}, low=0.0, high=1.0)
    with pytest.raises(BenchError, match="cannot write"):
        save_charts([chart], tmp_path)
