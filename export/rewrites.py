"""Changes to an exported graph that torch's exporter leaves to be made."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def rewrite(model: ir.Model) -> None:
    """Make all changes, in place."""
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Einsum":
            _einsum_as_transpose(node)
        elif node.op_type == "InstanceNormalization":
            _norm_in_float32(node)


def _einsum_as_transpose(node: ir.Node) -> None:
    """An Einsum of one operand that only reorders axes, such as SD3's ``nhwpqc->nchpwq``.

    ONNX has no bfloat16 Einsum, and runtimes know Transpose better.
    """
    equation = node.attributes["equation"].as_string().replace(" ", "")
    before, _, after = equation.partition("->")
    if len(node.inputs) != 1 or sorted(before) != sorted(after) or len(set(before)) < len(before):
        return
    permutation = [before.index(axis) for axis in after]
    transpose = ir.node("Transpose", node.inputs, {"perm": permutation})
    _replace(node, [transpose])


def _norm_in_float32(node: ir.Node) -> None:
    """GroupNorm, exported as InstanceNormalization: sums over a million values need float32.

    torch does so by itself, and ONNX' LayerNormalization by its ``stash_type``.
    """
    inputs: list[Any] = list(node.inputs)
    narrow_type = inputs[0].dtype
    if narrow_type not in _NARROW:
        return
    wide = [_cast(value, ir.DataType.FLOAT) for value in inputs]
    epsilon = node.attributes["epsilon"].as_float()
    norm = ir.node(
        "InstanceNormalization", [cast.outputs[0] for cast in wide], {"epsilon": epsilon}
    )
    norm.outputs[0].dtype = ir.DataType.FLOAT
    norm.outputs[0].shape = node.outputs[0].shape
    _replace(node, [*wide, norm, _cast(norm.outputs[0], narrow_type)])


def _cast(value: Any, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(dtype)})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    return node


def _replace(node: ir.Node, new: list[ir.Node]) -> None:
    """Put nodes, the last of which gives the same output, in a node's place."""
    graph: Any = node.graph
    old, fresh = node.outputs[0], new[-1].outputs[0]
    fresh.name, fresh.type, fresh.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [fresh])
