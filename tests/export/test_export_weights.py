"""Graphs with matrices in int8 or int4: as near as NNCF's, and the same pictures in any batch."""

import base64
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import starting
from onnx import numpy_helper
from PIL import Image
from students import SIZES, family, plan_of, verified

from export import weights
from export.cli import main
from export.compare import psnr_db
from export.graphs import graph, write_onnx
from export.int8 import load_nncf
from export.precision import PRECISIONS
from export.student import Student, load_student

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LEAST", 256)


def arrays(path: Path) -> Arrays:
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}


def matrices(found: Arrays, integers: str, scales: str) -> Arrays:
    """By name, widened again; a scale is of the axis that has its length, or of groups."""
    widened = {}
    for name, array in found.items():
        if name.endswith(integers):
            scale = found[name.removesuffix(integers) + scales]
            if scale.ndim == 2:
                times = np.array(array.shape) // scale.shape
                whole = scale.repeat(times[0], 0).repeat(times[1], 1)
                widened[name.removesuffix(integers)] = array.astype(np.float64) * whole
                continue
            axis = 0 if array.shape[0] == scale.size else 1
            wide = array.astype(np.float64) * np.expand_dims(scale, 1 - axis)
            widened[name.removesuffix(integers)] = wide
    return widened


def narrowed(plain: Path, folder: Path, bits: int) -> Path:
    """The matrices of a graph in so many bits."""
    model = ir.load(plain)
    weights.compress_weights(model, bits)
    ir.save(model, folder / plain.name)
    return folder / plain.name


@pytest.mark.slow
def test_as_near_as_nncfs(exported: Path, tmp_path: Path) -> None:
    """Of the text encoder; in the transformer NNCF stumbles over a weight that has its own view."""
    plain = exported / "1" / "text_encoder.onnx"
    path = narrowed(plain, tmp_path, 8)
    before, ours = arrays(plain), matrices(arrays(path), "_integers", "_scales")
    assert sum(each.size for each in ours.values()) > 0.9 * sum(
        each.size for name, each in before.items() if each.ndim == 2 and each.dtype == np.float32
    )
    nncf = load_nncf()
    compressed = nncf.compress_weights(onnx.load(plain), mode=nncf.CompressWeightsMode.INT8_SYM)
    onnx.save(compressed, tmp_path / "theirs.onnx")
    theirs = matrices(arrays(tmp_path / "theirs.onnx"), "_quantized", "_scale")
    assert len(theirs.keys() & ours.keys()) >= 8
    for name in theirs.keys() & ours.keys():
        errors = [np.abs(each[name] - before[name]).mean() for each in (ours, theirs)]
        assert errors[0] <= 1.1 * errors[1], name


def test_int4_is_near_in_groups(
    student: Student, exported: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Each weight within half a step of its group's largest; tables of words stay in int8."""
    monkeypatch.setattr(weights, "GROUP", 16)
    path = narrowed(exported / "1" / "text_encoder.onnx", tmp_path, 4)
    types = {w.name: w.data_type for w in onnx.load(path).graph.initializer}
    found, names = matrices(arrays(path), "_integers", "_scales"), student.adapter.networks
    tables = {name for name in found if "embed" in name or "shared" in name}
    assert tables and len(found) > 2 * len(tables)
    clip = names["text_encoder"].state_dict()
    fours = 0
    for name, wide in found.items():
        four = types[f"{name}_integers"] == onnx.TensorProto.INT4
        assert not (four and name in tables)
        fours += four
        key = next((key for key in clip if name.endswith(key) and "_2" not in name), None)
        if four and key is not None and "text_encoder." in name:
            own = clip[key].numpy()
            steps = np.abs(own).reshape(len(own), -1, 16).max(2).repeat(16, 1) / 7
            assert (np.abs(wide - own) <= 0.51 * steps).all()
    assert fours > 6


@pytest.fixture(scope="module")
def transformer(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_transformer(student, tmp_path_factory.mktemp("int8-weights"))


def int8_transformer(student: Student, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "LEAST", 256)
        made = graph("transformer", student.architecture, PRECISIONS["int8-weights"])
        write_onnx(made, folder / "transformer.onnx", bits=8)
    return folder / "transformer.onnx"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8-weights", "int4-weights"])
def test_pictures_stay_and_are_the_same_in_any_batch(
    student: Student,
    exported: Path,
    transformer: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(weights, "GROUP", 16)  # as narrow as the matrices
    plan = plan_of(name, sizes=SIZES[1:], max_batch=3)
    folder = Path(shutil.copytree(exported / "1", tmp_path / "1"))
    for component in weights.NARROWED:
        if (component, name) == ("transformer", "int8-weights"):
            shutil.copy(transformer, folder)
            continue
        made = graph(component, student.architecture, plan.precision)
        write_onnx(made, folder / f"{component}.onnx", bits=plan.precision.bits)
    found = verified(student, folder, plan)
    assert not found.failures
    assert "openvino-f32" in found.served
    assert found.to_json()["picture"]["psnr_db"] < 60


@pytest.mark.slow
def test_the_same_bytes_again(student: Student, transformer: Path, tmp_path: Path) -> None:
    assert int8_transformer(student, tmp_path).read_bytes() == transformer.read_bytes()


def test_not_for_tensorrt(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("int8-weights", "int4-weights"):
        options = ["--precision", name, "--to", "tensorrt", "--out", str(tmp_path / "out")]
        assert main([str(student_folder), *options]) == 2
        assert f"{name} is for --to onnx" in capsys.readouterr().err


@pytest.mark.slow
def test_served(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD3.5 and FLUX.1 by the real engine: diffusers' picture, the same in company."""
    monkeypatch.setattr(weights, "GROUP", 8)
    out, least = tmp_path / "models", {"int8-weights": 30.0, "int4-weights": 20.0}
    options = ["--to", "onnx", "--sizes", "64x64", "--max-batch", "4", "--out", str(out)]
    references = {}
    for name in ("sd3.5", "flux"):
        folder = family(name, tmp_path / name)
        generator = torch.Generator().manual_seed(7)
        references[name] = load_student(folder).adapter.picture("a fox", 4, 64, 64, generator)
        for precision in least:
            more = ["--precision", precision, "--name", f"{name}-{precision}"]
            assert main([str(folder), *options, *more]) == 0
    with starting(out, tmp_path_factory.mktemp) as start:
        server = start()
        server.wait_ready()

        def picture(model: str, seed: int) -> bytes:
            answer = server.generate(model=model, prompt="a fox", seed=seed, num_inference_steps=4)
            assert answer.status_code == 200, answer.text
            return base64.b64decode(answer.json()["data"][0]["b64_json"])

        for name, reference in references.items():
            for precision, decibels in least.items():
                model = f"{name}-{precision}"
                alone = [picture(model, seed) for seed in range(7, 13)]
                with ThreadPoolExecutor(6) as pool:
                    assert list(pool.map(partial(picture, model), range(7, 13))) == alone
                found = np.asarray(Image.open(io.BytesIO(alone[0])))
                assert psnr_db(found, np.asarray(reference)) > decibels, model
