"""Write a torch module as an ONNX file with dynamic axes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxscript  # noqa: F401  torch.onnx.export needs it: missing, it should fail before any work
import torch
from torch import Tensor, nn

from export.rewrites import rewrite

# A protobuf file is built in memory and ends at 2 GiB; above this, weights go to NAME.onnx.data.
INLINE_LIMIT = 1 << 28


@dataclass(frozen=True)
class Graph:
    """A module ready for export.

    ``dynamic_shapes`` names the dynamic axes per argument, as ``torch.onnx.export`` takes them.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic_shapes: Any
    opset: int = 20


def write_onnx(graph: Graph, path: Path, inline_limit: int = INLINE_LIMIT) -> None:
    """Export to ``path``; the same module and versions give the same bytes.

    Weights of more than ``inline_limit`` bytes go to ``path`` + ``.data``.
    """
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.dynamic_shapes,
            opset_version=graph.opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None is what the old, non-dynamo exporter returns
    rewrite(program.model)
    _strip_metadata(program.model)
    weights = sum(w.numel() * w.element_size() for w in graph.module.state_dict().values())
    program.save(path, external_data=weights > inline_limit)


def _strip_metadata(model: Any) -> None:
    """Drop the exporter's notes: stack traces that name this machine's files."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter: its notes on its own internals are nothing a user can act on."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
