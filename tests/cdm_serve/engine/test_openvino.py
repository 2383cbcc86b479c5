"""Large graphs of two bytes a weight in OpenVINO: what memory they take, and their last bits."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from cdm_serve.engine.runtimes import openvino
from export.weights import compress_weights

# As in SD3: the first product of a single row comes out otherwise, the second one is large.
WIDTHS = (2048, 1536, 18432)
BYTES = 4 * (2048 * 1536 + 1536 * 18432)  # of the weights in float32


@pytest.fixture(scope="module")
def matrices() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sides = pairwise(WIDTHS)
    return [(rng.standard_normal((n, k), np.float32) / 40).astype(np.float16) for k, n in sides]


@pytest.fixture(scope="module")
def product(matrices: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows times matrices, in float16 but for what passes in and out."""
    # OpenVINO opens the weights' file by itself, wherever it lies.
    path = tmp_path_factory.mktemp("product") / "a 'répo' #1" / "product.onnx"
    path.parent.mkdir()
    nodes = [
        helper.make_node("Cast", ["rows"], ["x0"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", ["x0", "w0"], ["x1"], transB=1),
        helper.make_node("Gemm", ["x1", "w1"], ["x2"], transB=1),
        helper.make_node("Cast", ["x2"], ["product"], to=TensorProto.FLOAT),
    ]
    rows, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", length])
        for name, length in (("rows", WIDTHS[0]), ("product", WIDTHS[-1]))
    )
    weights = [numpy_helper.from_array(each, f"w{k}") for k, each in enumerate(matrices)]
    model = helper.make_model(
        helper.make_graph(nodes, "product", [rows], [out], weights),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    model.ir_version = 10
    location = f"{path.name}.data"
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=1024)
    return path


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def of_the_file(path: Path) -> int:
    """Bytes of a file that this process has in memory."""
    found, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            mapped = line.endswith(f"{path}.data")
        elif mapped and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def test_weights_are_in_memory_once_and_a_row_is_the_same_in_a_batch(
    product: Path, matrices: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "SMALL", BYTES / 4)
    before = anonymous()
    graph = openvino.OpenVino("f32").load(product)
    rows = np.random.default_rng(1).standard_normal((3, WIDTHS[0]), np.float32)
    together = graph.run({"rows": rows})["product"]
    alone = np.concatenate([graph.run({"rows": row[None]})["product"] for row in rows])
    assert np.array_equal(together, alone)
    assert anonymous() - before < 1.5 * BYTES
    assert of_the_file(product) < 0.2 * BYTES
    # Computed in float32: nothing is rounded to float16 on the way.
    expected = rows @ matrices[0].astype(np.float32).T @ matrices[1].astype(np.float32).T
    assert np.allclose(together, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_narrow_weights_stay_narrow_in_memory(
    product: Path, matrices: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """As ``cdm-export --precision int8-weights`` and ``int4-weights`` write them."""
    monkeypatch.setattr(openvino, "SMALL", 1)
    path = product.with_name(f"narrow-{bits}.onnx")
    model = onnx_ir.load(product)
    model.opset_imports[""] = 22
    compress_weights(model, bits)
    onnx_ir.save(model, path, external_data=f"{path.name}.data")
    before = anonymous()
    graph = openvino.OpenVino("f32").load(path)
    rows = np.random.default_rng(1).standard_normal((3, WIDTHS[0]), np.float32)
    together = graph.run({"rows": rows})["product"]
    alone = np.concatenate([graph.run({"rows": row[None]})["product"] for row in rows])
    assert np.array_equal(together, alone)
    assert anonymous() - before < 1.6 * BYTES * bits / 32
    expected = rows @ matrices[0].astype(np.float32).T @ matrices[1].astype(np.float32).T
    error = np.square(together - expected).mean() / np.square(expected).mean()
    assert error < (0.02 if bits == 8 else 0.25) ** 2
