import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from export.rewrites import rewrite


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, inputs)
    return np.asarray(output)


def rewritten(text: str) -> onnx.ModelProto:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    rewrite(model)
    changed = ir.serde.serialize_model(model)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def test_einsum_that_reorders_axes_is_a_transpose() -> None:
    model = rewritten(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2,3,4,5,6,7] x) => (float[2,7,3,5,4,6] y) {
            y = Einsum <equation = "nhwpqc->nchpwq"> (x)
        }"""
    )
    assert [node.op_type for node in model.graph.node] == ["Transpose"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6, 7), dtype=np.float32)
    assert np.array_equal(run(model, x=x), np.einsum("nhwpqc->nchpwq", x))


@pytest.mark.parametrize("equation, shape", [("ij->i", "[2]"), ("ii->i", "[3]")])
def test_other_einsums_stay(equation: str, shape: str) -> None:
    rows = 3 if equation.startswith("ii") else 2
    model = rewritten(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[{rows},3] x) => (float{shape} y) {{ y = Einsum <equation = "{equation}"> (x) }}"""
    )
    assert [node.op_type for node in model.graph.node] == ["Einsum"]


def test_a_norm_in_float16_sums_in_float32() -> None:
    """Values whose squares leave float16's range."""
    model = rewritten(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float16[1,2,64] x, float16[2] s, float16[2] b) => (float16[1,2,64] y) {
            y = InstanceNormalization <epsilon = 0.001> (x, s, b)
        }"""
    )
    types = [node.op_type for node in model.graph.node]
    assert types == ["Cast", "Cast", "Cast", "InstanceNormalization", "Cast"]
    x = np.linspace(-6e4, 6e4, 128, dtype=np.float16).reshape(1, 2, 64)
    scale, bias = np.array([1, 2], np.float16), np.array([0, 1], np.float16)
    wide = x.astype(np.float64)
    mean, variance = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    expected = (wide - mean) / np.sqrt(variance + 0.001) * scale[:, None] + bias[:, None]
    np.testing.assert_allclose(run(model, x=x, s=scale, b=bias), expected, rtol=2e-3, atol=2e-3)


def test_a_norm_in_float32_stays() -> None:
    model = rewritten(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[1,2,64] x, float[2] s, float[2] b) => (float[1,2,64] y) {
            y = InstanceNormalization (x, s, b)
        }"""
    )
    assert [node.op_type for node in model.graph.node] == ["InstanceNormalization"]
