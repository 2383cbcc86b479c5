"""Weights in fewer bits: matrices as integers with scales, widened again when they are multiplied.

As ``nncf.compress_weights`` does it without data (INT8_SYM, INT4_SYM), but for graphs in bfloat16
too, and one matrix after the other while the file is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# The VAE's weights are few.
NARROWED = ("text_encoder", "transformer")
# What is smaller is not worth a node, and is often what all else depends on.
LEAST = 1 << 14
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Inputs of an output that share a scale in int4.
GROUP = 64


def compress_weights(model: ir.Model, bits: int) -> None:
    """Keep every matrix of at least ``LEAST`` weights in int8, with a scale for each output.

    With 4 bits a matrix has int4 and a scale for each ``GROUP`` of an output's inputs; tables of
    words, and what no groups divide, stay in int8.
    """
    for value in list(model.graph.initializers.values()):
        weights = value.const_value
        if weights is None or weights.dtype not in _FLOATS or weights.size < LEAST:
            continue
        axis = _output_axis(value)
        if axis is None:
            continue
        table = any(usage.node.op_type == "Gather" for usage in value.uses())
        inputs = weights.shape.numpy()[1 - axis]
        grouped = bits == 4 and not table and inputs % GROUP == 0
        _compress(model.graph, value, axis, GROUP if grouped else None)


def _output_axis(value: ir.Value) -> int | None:
    """That of a matrix's outputs, or of a table's rows; ``None`` of anything else."""
    if value.shape is None or len(value.shape) != 2:
        return None
    axes = {_axis_of(usage.node, usage.idx) for usage in value.uses()}
    return axes.pop() if len(axes) == 1 else None


def _axis_of(node: ir.Node, place: int) -> int | None:
    if node.op_type == "Gather" and place == 0:
        return 0
    if node.op_type == "Gemm" and place == 1:
        return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
    if node.op_type == "MatMul" and place == 1:
        return 1
    if node.op_type == "Transpose":
        following = {_axis_of(each.node, each.idx) for each in node.outputs[0].uses()}
        return 0 if following == {1} else None
    return None


def _compress(graph: ir.Graph, value: ir.Value, axis: int, group: int | None) -> None:
    weights: Any = value.const_value
    shape, dtype = [weights.shape[axis]], ir.DataType.INT8
    attributes = {"axis": axis}
    if group is not None:
        shape, dtype = list(weights.shape), ir.DataType.INT4
        shape[1 - axis] //= group
        attributes = {"axis": 1 - axis, "block_size": group}
    integers = _initializer(
        graph,
        ir.LazyTensor(
            lambda: ir.tensor(_integers(weights.numpy(), axis, group)[0]),
            dtype=dtype,
            shape=weights.shape,
            name=f"{value.name}_integers",
        ),
    )
    scales = _initializer(
        graph,
        ir.LazyTensor(
            lambda: ir.tensor(_integers(weights.numpy(), axis, group)[1]),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(shape),
            name=f"{value.name}_scales",
        ),
    )
    widened = ir.node("DequantizeLinear", [integers, scales], attributes)
    nodes, last = [widened], widened.outputs[0]
    last.dtype, last.shape = ir.DataType.FLOAT, value.shape
    if weights.dtype != ir.DataType.FLOAT:
        nodes.append(ir.node("Cast", [last], {"to": int(weights.dtype)}))
        last = nodes[-1].outputs[0]
        last.dtype, last.shape = weights.dtype, value.shape
    value.replace_all_uses_with(last)
    graph.initializers.pop(str(value.name))
    graph.insert_before(graph[0], nodes)


def _initializer(graph: ir.Graph, tensor: Any) -> ir.Value:
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _integers(
    weights: NDArray[Any], axis: int, group: int | None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """In int8 and scales (outputs,); with a group in int4, and scales by output and group."""
    rows, columns = weights.shape
    length, most = (weights.shape[1 - axis], 127) if group is None else (group, 7)
    grouped = (rows, -1, length) if axis == 0 else (-1, length, columns)
    wide = weights.astype(np.float32).reshape(grouped)
    scales = np.abs(wide).max(axis=2 - axis, keepdims=True) / most
    scales[scales == 0] = 1.0
    integers = np.rint(wide / scales).reshape(rows, columns)
    if group is None:
        return integers.astype(np.int8), scales.ravel()
    return integers.astype(ir.DataType.INT4.numpy()), scales.squeeze(2 - axis)
