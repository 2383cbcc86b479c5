"""Quantized graphs: fixed scales, small files, pictures that stay, the same bits in any batch."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from students import SIZES, plan_of, verified

from export import int8
from export.cli import main
from export.errors import ExportError
from export.int8 import QUANTIZED, calibrate, calibration_prompts, check_size, load_nncf, quantize
from export.student import Student

PROMPTS = tuple(f"{a} {b}" for a in ("a fox", "two owls", "rain", "") for b in ("at night", "here"))


@pytest.fixture(scope="module")
def rows(student: Student) -> dict[str, Any]:
    """What the graphs are calibrated with."""
    return calibrate(student, PROMPTS, SIZES)


@pytest.fixture(scope="module")
def quantized(
    exported: Path, rows: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny student's graphs, quantized."""
    folder = shutil.copytree(exported / "1", tmp_path_factory.mktemp("int8") / "1")
    for component in QUANTIZED[:2]:  # without a tiny decoder
        quantize(folder / f"{component}.onnx", component, rows[component])
    return Path(folder)


def test_weights_and_activations_are_int8_with_fixed_scales(
    quantized: Path, exported: Path
) -> None:
    for component in QUANTIZED[:2]:  # without a tiny decoder
        graph = onnx.load(quantized / f"{component}.onnx").graph
        kinds = [node.op_type for node in graph.node]
        assert "DynamicQuantizeLinear" not in kinds
        fixed = {each.name for each in graph.initializer}
        fixed |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        scales = [node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"]
        assert scales and set(scales) <= fixed
        weights = [each for each in graph.initializer if each.data_type == TensorProto.INT8]
        large = [each for each in weights if np.prod(each.dims) > 64]
        assert len(large) >= 8, component
    untouched = "text_encoder.onnx"
    assert (quantized / untouched).read_bytes() == (exported / "1" / untouched).read_bytes()


def test_axes_stay_dynamic_and_named(quantized: Path, exported: Path) -> None:
    for component in QUANTIZED[:2]:  # without a tiny decoder
        before = onnx.load(exported / "1" / f"{component}.onnx").graph
        after = onnx.load(quantized / f"{component}.onnx").graph
        assert list(before.input) == list(after.input)
        assert list(before.output) == list(after.output)


def test_pictures_stay_and_are_the_same_in_any_batch(quantized: Path, student: Student) -> None:
    verification = verified(student, quantized, plan_of("int8", sizes=SIZES[1:]))
    assert not verification.failures
    assert "openvino-f32" in verification.served
    contents = verification.to_json()
    text = [each for each in contents["components"] if each["component"] == "text_encoder"]
    # The text encoder is not quantized, so it is held to more.
    assert {e["tolerance"] for e in text if e["runtime"] == "openvino-f32"} == {1e-4}
    assert contents["picture"]["psnr_db"] < 60  # it is quantized


@pytest.mark.slow
def test_scales_of_something_else_are_found(
    exported: Path, student: Student, tmp_path: Path
) -> None:
    """A calibration that never saw anything like a picture."""
    folder = shutil.copytree(exported / "1", tmp_path / "1")
    rows = calibrate(student, PROMPTS[:2], SIZES)["transformer"]
    faint = [row | {"latents": 0.001 * row["latents"]} for row in rows]
    quantize(folder / "transformer.onnx", "transformer", faint)
    assert verified(student, folder, plan_of("int8")).failures


@pytest.mark.slow
def test_the_same_calibration_gives_the_same_bytes(
    quantized: Path, exported: Path, student: Student, tmp_path: Path
) -> None:
    again = Path(shutil.copy(exported / "1" / "vae_decoder.onnx", tmp_path))
    quantize(again, "vae_decoder", calibrate(student, PROMPTS, SIZES)["vae_decoder"])
    assert again.read_bytes() == (quantized / again.name).read_bytes()


def test_large_weights_lie_beside_the_graph(
    quantized: Path,
    exported: Path,
    rows: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside = Path(shutil.copy(exported / "1" / "transformer.onnx", tmp_path))
    monkeypatch.setattr(int8, "INLINE_LIMIT", 1000)
    quantize(beside, "transformer", rows["transformer"])
    data = tmp_path / "transformer.onnx.data"
    assert data.stat().st_size > 1000
    whole = onnx.load(beside).graph
    inside = onnx.load(quantized / beside.name).graph
    arrays = [
        {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        for graph in (whole, inside)
    ]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def test_prompts_are_spread_over_the_source(tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("".join(f"prompt {i}\n\n" for i in range(1000)))
    chosen = calibration_prompts(str(source))
    assert len(chosen) == 64 == len(set(chosen))
    assert (chosen[0], chosen[-1]) == ("prompt 0", "prompt 999")
    source.write_text("one\ntwo\n")
    assert calibration_prompts(str(source)) == ("one", "two")


def test_a_graph_that_is_too_large(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    check_size(student)
    monkeypatch.setattr(int8, "LIMIT", 1000)
    with pytest.raises(ExportError, match=r"transformer has .* GiB .* at most 2"):
        check_size(student)


def test_without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ExportError, match=r"pip install 'cdm-serve\[int8\]'"):
        load_nncf()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "--precision int8 needs --calibration PROMPTS"),
        (["--calibration", "prompts.txt"], "--calibration is for --precision int8"),
        (
            ["--precision", "int8", "--calibration", "nowhere.txt"],
            "--calibration: prompt file nowhere.txt cannot be read",
        ),
        (
            ["--precision", "int8", "--calibration", "p.txt", "--to", "tensorrt"],
            "--precision int8 is for --to onnx",
        ),
    ],
)
def test_options_that_do_not_go_together(
    student_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert main([str(student_folder), "--to", "onnx", "--out", str(out), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


@pytest.mark.slow
def test_the_command(student_folder: Path, tmp_path: Path) -> None:
    """The whole of it; what was calibrated with is stamped."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    options = ["--to", "onnx", "--precision", "int8", "--calibration", str(prompts)]
    out = tmp_path / "out"
    assert main([str(student_folder), *options, "--max-batch", "2", "--out", str(out)]) == 0
    contents = json.loads((out / "tiny" / "1" / "export.json").read_text())
    assert contents["precision"] == "int8"
    assert contents["calibration"]["prompts"] == len(PROMPTS)
    assert contents["versions"]["nncf"]
    assert "openvino-f32" in contents["runtimes"]
    assert (out / "tiny" / "config.pbtxt").exists()
