"""The three components as modules ready for export, the same for every architecture."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from distill.adapters import Adapter, Condition
from export.architectures import Architecture
from export.graphs import Graph
from export.precision import Precision, cast


def graph(component: str, architecture: Architecture, precision: Precision) -> Graph:
    """One of ``COMPONENTS``."""
    makers = {
        "text_encoder": text_encoder_graph,
        "transformer": transformer_graph,
        "vae_decoder": vae_decoder_graph,
    }
    return makers[component](architecture, precision)


def text_encoder_graph(architecture: Architecture, precision: Precision) -> Graph:
    """Tokens of every tokenizer (B, L) -> what the transformer is conditioned on."""
    inputs = architecture.text_inputs()
    known = architecture.transformer_inputs()
    return Graph(
        module=architecture.text_encoder(precision.dtype),
        inputs=inputs,
        outputs=tuple(name for name in ("prompt_embeds", "pooled") if name in known),
        dynamic_shapes=(tuple({0: "batch"} for _ in inputs),),
        opset=precision.opset,
    )


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
        tensors = {n: t.to(self.dtype) for n, t in zip(self.names, condition, strict=True)}
        x = latents.to(self.dtype)
        return self.adapter.velocity(self.transformer, x, sigma, Condition(tensors)).float()


def transformer_graph(architecture: Architecture, precision: Precision) -> Graph:
    """Latents, sigma and condition -> velocity."""
    inputs = architecture.transformer_inputs()
    axes: dict[str, dict[int, str]] = {
        "prompt_embeds": {0: "batch", 1: "text"},
        "pooled": {0: "batch"},
    }
    names = [name for name in inputs if name in axes]
    transformer = architecture.transformer(precision.dtype)
    return Graph(
        module=Velocity(architecture.adapter, transformer, names, precision.dtype),
        inputs=inputs,
        outputs=("velocity",),
        dynamic_shapes=(
            {0: "batch", 2: "height", 3: "width"},
            {0: "batch"},
            tuple(axes[name] for name in names),
        ),
        opset=precision.opset,
    )


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


def vae_decoder_graph(architecture: Architecture, precision: Precision) -> Graph:
    """Latents -> the pixels that are encoded as a picture."""
    adapter: Any = copy.copy(architecture.adapter)
    adapter.pipeline = copy.copy(adapter.pipeline)
    adapter.pipeline.vae = cast(adapter.pipeline.vae, precision.dtype)
    return Graph(
        module=Decoder(adapter),
        inputs={"latents": torch.zeros(2, adapter.pipeline.vae.config.latent_channels, 8, 12)},
        outputs=("image",),
        dynamic_shapes={"latents": {0: "batch", 2: "height", 3: "width"}},
        opset=precision.opset,
    )
