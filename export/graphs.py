"""The components of a student as torch modules, and those as ONNX files."""

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

from cdm_serve.engine.manifest import PICTURE
from distill.adapters import Adapter, Condition
from export.architectures.architecture import Architecture
from export.precision import Precision, cast
from export.rewrites import rewrite
from export.weights import compress_weights

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


class Velocity(nn.Module):
    """The adapter's own velocity, so that packing, ids and timesteps are inside the graph."""

    def __init__(
        self, adapter: Adapter, transformer: nn.Module, names: list[str], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.transformer = transformer
        self.names = names
        self.dtype = dtype

    def forward(self, latents: Tensor, sigma: Tensor, *condition: Tensor) -> Tensor:
        """Latents (B, C, h, w) at noise level sigma (B,) -> velocity (B, C, h, w); all float32."""
        tensors = {
            name: each.to(self.dtype) if each.is_floating_point() else each
            for name, each in zip(self.names, condition, strict=True)
        }
        x = latents.to(self.dtype)
        return self.adapter.velocity(self.transformer, x, sigma, Condition(tensors)).float()


class Decoder(nn.Module):
    """The adapter's decoding, then diffusers' ``VaeImageProcessor.postprocess`` to uint8."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.vae = adapter.pipeline.vae

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> image (B, H, W, 3), uint8; ties round to even as in numpy."""
        unit = (self.adapter.decode(latents) * 0.5 + 0.5).clamp(0, 1)
        return (unit.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


class Encoder(nn.Module):
    """diffusers' ``VaeImageProcessor.preprocess`` from uint8, then the adapter's encoding."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.vae = adapter.pipeline.vae

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, H, W, 3), uint8 -> latents (B, C, h, w), float32."""
        unit = image.float().permute(0, 3, 1, 2) / 255  # TensorRT does nothing but cast uint8
        return self.adapter.encode_pictures(2 * unit - 1)


def graph(
    component: str,
    architecture: Architecture,
    precision: Precision,
    tiny: nn.Module | None = None,
) -> Graph:
    """A component: from tokens to condition, to velocity, from latents to pixels or back.

    ``tiny`` is the autoencoder of a ``tiny_decoder``. Example inputs have two rows, and otherwise
    no two axes of one length.
    """
    adapter: Any = architecture.adapter
    dtype, opset = precision.dtype, precision.opset
    condition = adapter.empty_condition(2).tensors
    height, width = (sides * adapter.multiple for sides in architecture.example)
    image = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    pixels = {0: "batch", 1: "height", 2: "width"}
    if component == "text_encoder":
        inputs: dict[str, Tensor] = architecture.text_inputs()
        text_axes = [{0: "batch"} for _ in inputs]
        if adapter.needs_picture:
            seen_width, seen_height, _ = adapter.views(height, width)[-1]
            inputs["image"] = torch.zeros(2, seen_height, seen_width, 3, dtype=torch.uint8)
            text_axes.append(pixels)
        outputs = tuple(name for name in condition if name != PICTURE)
        module = architecture.text_encoder(dtype)
        return Graph(module, inputs, outputs, (tuple(text_axes),), opset)
    latents = torch.zeros(2, *adapter.latent_shape(height, width))
    picture = {0: "batch", 2: "height", 3: "width"}
    if component.endswith(("_decoder", "vae_encoder")):
        vae = architecture.vae(dtype) if tiny is None else cast(tiny, dtype)
        adapter = adapter.with_vae(vae)
        if component != "vae_encoder":
            return Graph(Decoder(adapter), {"latents": latents}, ("image",), (picture,), opset)
        return Graph(Encoder(adapter), {"image": image}, ("latents",), (pixels,), opset)
    inputs = {"latents": latents, "sigma": torch.ones(2)}
    inputs |= {name: torch.zeros_like(each) for name, each in condition.items()}
    rows = {0: "batch"}
    axes = [rows] * len(condition)  # texts have one length
    if adapter.needs_picture:  # but with a picture before them
        inputs[PICTURE] = latents.clone()  # one tensor twice would become one input
        axes = [picture if name == PICTURE else {0: "batch", 1: "tokens"} for name in condition]
    velocity = Velocity(adapter, architecture.transformer(dtype), list(condition), dtype)
    return Graph(velocity, inputs, ("velocity",), (picture, rows, tuple(axes)), opset)


def write_onnx(
    graph: Graph, path: Path, inline_limit: int = INLINE_LIMIT, *, bits: int | None = None
) -> None:
    """Export to ``path``; the same module and versions give the same bytes.

    Weights of more than ``inline_limit`` bytes go to ``path`` + ``.data``; with ``bits`` matrices
    are kept in so many.
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
    if bits is not None:
        compress_weights(program.model, bits)
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
