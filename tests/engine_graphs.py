"""What can be known of TensorRT engines from the graphs they are to be built from."""

import onnx

from export.profiles import Profile

# docs/operators.md of onnx-tensorrt for TensorRT 10.15: those marked Y, without recurrent,
# random, quantized and pooling ones. The types beside them there: floats, int32, int64, bool, and
# uint8 as what passes in or out, cast there and nowhere else (TensorRT's DataType.UINT8).
_DOCUMENTED = """
Abs Add And ArgMax ArgMin Attention BatchNormalization Cast CastLike Ceil Clip Concat Constant
ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf Exp
Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater
GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity If InstanceNormalization IsInf
IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul Max Mean Min Mod
Mul Neg NonZero Not OneHot Or Pad Pow PRelu RMSNormalization Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Resize RotaryEmbedding Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin
Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu
Unsqueeze Where Xor
"""
SUPPORTED = frozenset(_DOCUMENTED.split())
AXES_ARE_INITIALIZERS = "Reduce"
TENSOR = onnx.TensorProto
INSIDE = {TENSOR.FLOAT, TENSOR.FLOAT16, TENSOR.BFLOAT16, TENSOR.INT32, TENSOR.INT64, TENSOR.BOOL}


def check_profiles(component: str, sizes: list[Profile], model: onnx.ModelProto) -> None:
    """That every input has shapes, of its rank and fixed axes; equal names have equal lengths."""
    for profile in sizes:
        assert set(profile.shapes) == {value.name for value in model.graph.input}
        for bound in range(3):
            lengths: dict[str, int] = {}
            for value in model.graph.input:
                axes = value.type.tensor_type.shape.dim
                shape = profile.shapes[value.name][bound]
                assert len(shape) == len(axes)
                for axis, length in zip(axes, shape, strict=True):
                    if axis.dim_param:
                        assert lengths.setdefault(axis.dim_param, length) == length
                    else:
                        assert axis.dim_value == length
            most = 1 if component == "vae_encoder" else 4
            assert lengths["batch"] == (1, most, most)[bound]


def check_operators(model: onnx.ModelProto) -> None:
    """That TensorRT's list has all operators and types."""
    assert not model.functions
    graph = model.graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert {node.op_type for node in graph.node} <= SUPPORTED
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type.startswith(AXES_ARE_INITIALIZERS) and len(node.input) > 1:
            assert node.input[1] in constants
    inferred = onnx.shape_inference.infer_shapes(model).graph
    inside = {value.type.tensor_type.elem_type for value in inferred.value_info}
    assert inside | {tensor.data_type for tensor in graph.initializer} <= INSIDE
    outside = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    assert outside <= {TENSOR.FLOAT, TENSOR.INT64, TENSOR.UINT8}
