import json
import math

import numpy as np
import pytest

from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from export.compare import (
    MOST_DB,
    Comparison,
    Invariance,
    Picture,
    Tolerance,
    compare,
    max_abs,
    psnr_db,
    relative_rms,
)
from export.verify import Candidate, Verification


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


def test_values_that_are_not_finite_are_infinitely_far() -> None:
    one, broken = np.ones(3), np.array([1.0, math.nan, 1.0])
    assert max_abs(broken, one) == relative_rms(broken, one) == math.inf


def test_another_shape_is_infinitely_far() -> None:
    row, column = np.ones((1, 3)), np.ones((3, 1))  # numpy would broadcast them
    assert max_abs(row, column) == relative_rms(row, column) == math.inf
    assert psnr_db(row, column) == 0.0


TOLERANCE = Tolerance(relative_rms=1e-4, levels=1, picture_db=60)
WHERE = {"component": "transformer", "output": "velocity", "batch": 3, "size": "64x64"}


def comparison(difference: float, runtime: str = "onnxruntime") -> Comparison:
    expected = np.ones((3, 2), dtype=np.float32)
    actual = (expected * (1 + difference)).astype(np.float32)
    return compare(actual, expected, TOLERANCE, runtime=runtime, **WHERE)


def test_pixels_are_bounded_by_level_and_floats_by_rms() -> None:
    pixels = np.full((3, 4, 4, 3), 7, dtype=np.uint8)
    assert compare(pixels + 1, pixels, TOLERANCE, runtime="r", **WHERE).passed
    found = compare(pixels + 2, pixels, TOLERANCE, runtime="r", **WHERE)
    assert not found.passed and (found.measure, found.tolerance) == ("max_abs", 1)
    assert comparison(1e-5).measure == "relative_rms"


def test_only_what_is_beyond_tolerance_in_a_required_runtime_fails() -> None:
    good, bad, broken = comparison(1e-5), comparison(1e-3), comparison(math.nan)
    blurred = Picture("onnxruntime", "64x64", 59.0, 60.0)
    shared = Invariance("extra", "transformer", 3, "64x64", identical=False)
    extra = Candidate("extra", OnnxRuntime("cpu"), serves=True, required=False)
    fine = Candidate("fine", OnnxRuntime("cpu"), serves=True)
    required = Candidate("onnxruntime", OnnxRuntime("cpu"))
    verification = Verification(
        (required, extra, fine),
        (good, bad, broken, Picture("onnxruntime", "72x56", 61.0, 60.0), blurred, shared),
    )
    assert verification.failures == [bad, broken, blurred]
    assert verification.refused == {"onnxruntime": bad, "extra": shared}
    assert verification.served == ["fine"]
    assert str(bad) == (
        "transformer (velocity) in onnxruntime at batch 3, 64x64: relative_rms 0.001, "
        "tolerance 0.0001"
    )
    json.dumps(verification.to_json())


def test_json_holds_the_worst_picture() -> None:
    candidate = Candidate("onnxruntime", OnnxRuntime("cpu"))
    pictures = tuple(
        Picture("onnxruntime", size, psnr, 60.0)
        for size, psnr in (("64x64", 90.0), ("72x56", 80.0))
    )
    contents = json.loads(
        json.dumps(Verification((candidate,), (comparison(1e-5), *pictures)).to_json())
    )
    assert contents["picture"]["size"] == "72x56" and contents["picture"]["psnr_db"] == 80.0
    assert contents["components"][0]["batch"] == 3 and contents["components"][0]["passed"]
