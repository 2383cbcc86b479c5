from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cdm_serve.engine.manifest import COMPONENTS
from export.graphs import Graph, write_onnx


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return Graph(nn.Linear(32, 16), {"x": torch.zeros(2, 32)}, ("y",), {"input": {0: "batch"}})


def test_large_weights_go_to_a_file_beside(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    write_onnx(graph, path, inline_limit=0)
    assert (tmp_path / "linear.onnx.data").stat().st_size >= 32 * 16 * 4
    x = np.random.default_rng(0).standard_normal((5, 32), dtype=np.float32)
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    expected = graph.module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_full_disk(graph: Graph) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_onnx(graph, Path("/dev/full"))


def test_graphs_are_of_the_opset_with_named_axes_and_no_paths(exported: Path) -> None:
    for component in (*COMPONENTS, "vae_encoder"):
        path = exported / "1" / f"{component}.onnx"
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        for tensor in model.graph.input:
            assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert not [node for node in model.graph.node if node.op_type == "Einsum"]
        assert b".py" not in path.read_bytes()  # the exporter's stack traces


def test_floats_are_float32(exported: Path) -> None:
    """Weights come from float16 files, and TensorRT knows no float64."""
    for component in (*COMPONENTS, "vae_encoder"):
        graph = onnx.load(exported / "1" / f"{component}.onnx").graph
        types = {tensor.data_type for tensor in graph.initializer}
        types |= {value.type.tensor_type.elem_type for value in graph.value_info}
        assert onnx.TensorProto.FLOAT in types
        assert not types & {onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
