"""The VAE decoder graph: latents -> the pixels that are encoded as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.graphs import Graph

if TYPE_CHECKING:
    from distill.adapters import Sd3Adapter


class Decoder(nn.Module):
    """The adapter's decoding, then diffusers' ``VaeImageProcessor.postprocess`` to uint8."""

    def __init__(self, adapter: Sd3Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.vae = adapter.pipeline.vae

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> image (B, H, W, 3), uint8; ties round to even as in numpy."""
        unit = (self.adapter.decode(latents) * 0.5 + 0.5).clamp(0, 1)
        return (unit.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


@contextmanager
def vae_decoder_graph(adapter: Sd3Adapter) -> Iterator[Graph]:
    """The adapter's VAE decoder as a graph."""
    channels = adapter.pipeline.transformer.config.in_channels
    yield Graph(
        module=Decoder(adapter),
        inputs={"latents": torch.zeros(2, channels, 8, 12)},
        outputs=("image",),
        dynamic_shapes={"latents": {0: "batch", 2: "height", 3: "width"}},
    )
