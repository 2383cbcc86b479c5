import json
import math

import numpy as np
import pytest

from export.compare import (
    MOST_DB,
    Comparison,
    Picture,
    Verification,
    max_abs,
    psnr_db,
    relative_rms,
)


def test_figures_in_closed_form() -> None:
    expected = np.array([3.0, -4.0], dtype=np.float32)
    actual = np.array([3.0, -3.5], dtype=np.float32)
    assert max_abs(actual, expected) == 0.5
    assert relative_rms(actual, expected) == pytest.approx(0.1)  # 0.5 / 5


def test_pixels_are_not_subtracted_as_bytes() -> None:
    dark = np.zeros((2, 2, 3), dtype=np.uint8)
    bright = np.full((2, 2, 3), 255, dtype=np.uint8)
    assert max_abs(dark, bright) == 255
    assert psnr_db(dark, bright) == 0.0
    assert psnr_db(dark, dark + 1) == pytest.approx(48.13)
    assert psnr_db(dark, dark) == MOST_DB


def test_relative_rms_of_nothing() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert relative_rms(zero, zero) == 0.0
    assert relative_rms(one, zero) == math.inf


def test_another_shape_is_infinitely_far() -> None:
    row, column = np.ones((1, 3)), np.ones((3, 1))  # numpy would broadcast them
    assert max_abs(row, column) == relative_rms(row, column) == math.inf
    assert psnr_db(row, column) == 0.0


def comparison(relative: float, tolerance: float = 1e-4) -> Comparison:
    return Comparison(
        "transformer", "velocity", 3, "64x64", 1.0, relative, "relative_rms", tolerance
    )


def test_only_what_is_beyond_tolerance_fails() -> None:
    good, bad, broken = comparison(1e-5), comparison(1e-3), comparison(math.nan)
    blurred = Picture("64x64", 59.0, 60.0)
    verification = Verification((good, bad, broken), (Picture("72x56", 61.0, 60.0), blurred))
    assert verification.failures == [bad, broken, blurred]
    assert str(bad) == (
        "transformer (velocity) at batch 3, 64x64: relative_rms 0.001, tolerance 0.0001"
    )


def test_json_holds_the_worst_picture() -> None:
    pictures = (Picture("64x64", 90.0, 60.0), Picture("72x56", 80.0, 60.0))
    contents = json.loads(json.dumps(Verification((comparison(1e-5),), pictures).to_json()))
    assert contents["picture"] == {"size": "72x56", "psnr_db": 80.0, "tolerance_db": 60.0}
    assert contents["components"][0]["batch"] == 3
