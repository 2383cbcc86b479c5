from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.chart import Chart, save_charts
from benchmarks.errors import BenchError


def test_charts_stand_side_by_side_and_a_line_is_where_its_values_are(tmp_path: Path) -> None:
    flat = Chart("t", ["1", "2"], {"flat": [0.5, 0.5]}, high=1.0)
    save_charts([flat, flat], tmp_path / "two.png")
    save_charts([flat], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width > 1.5 * one.width and two.height == one.height
        pixels = np.asarray(one.convert("RGB")).astype(int)
    red, _, blue = np.moveaxis(pixels, -1, 0)
    # The line, without its short copy in the legend, lies half-way up the axes.
    rows, _ = np.nonzero((blue - red > 100) & (np.arange(one.width) < one.width / 2))
    assert len(rows) > 100
    assert 0.4 < rows.mean() / one.height < 0.6


def test_says_when_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot write"):
        save_charts([Chart("t", ["1"], {"a": [1.0]})], tmp_path)
