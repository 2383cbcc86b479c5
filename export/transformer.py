"""The transformer graph: latents, sigma and condition -> velocity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.adapters import Condition
from export.graphs import Graph

if TYPE_CHECKING:
    from distill.adapters import Sd3Adapter


class Velocity(nn.Module):
    """The adapter's own velocity, so that timestep scaling is inside the graph."""

    def __init__(self, adapter: Sd3Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.transformer = adapter.transformer

    def forward(
        self, latents: Tensor, sigma: Tensor, prompt_embeds: Tensor, pooled: Tensor
    ) -> Tensor:
        """Latents (B, C, h, w) at noise level sigma (B,) -> velocity (B, C, h, w)."""
        condition = Condition(prompt_embeds, pooled)
        return self.adapter.velocity(self.transformer, latents, sigma, condition)


@contextmanager
def transformer_graph(adapter: Sd3Adapter) -> Iterator[Graph]:
    """The adapter's transformer as a graph, with its position embeddings cropped exportably."""
    config = adapter.pipeline.transformer.config
    pos_embed: Any = adapter.pipeline.transformer.pos_embed
    patch: int = config.patch_size
    # Any sizes do, as long as no two axes have the same one.
    inputs = {
        "latents": torch.zeros(2, config.in_channels, 4 * patch, 6 * patch),
        "sigma": torch.ones(2),
        "prompt_embeds": torch.zeros(2, 7, config.joint_attention_dim),
        "pooled": torch.zeros(2, config.pooled_projection_dim),
    }
    pos_embed.cropped_pos_embed = lambda height, width: _crop(pos_embed, height, width)
    try:
        yield Graph(
            module=Velocity(adapter),
            inputs=inputs,
            outputs=("velocity",),
            dynamic_shapes={
                "latents": {0: "batch", 2: "height", 3: "width"},
                "sigma": {0: "batch"},
                "prompt_embeds": {0: "batch", 1: "text"},
                "pooled": {0: "batch"},
            },
        )
    finally:
        del pos_embed.cropped_pos_embed  # the class's own method shows again


def _crop(pos_embed: Any, height: int, width: int) -> Tensor:
    """``PatchEmbed.cropped_pos_embed`` by index, for latents of the given size.

    As a slice, the exporter turns ``(max - height) // 2`` into a division that rounds towards
    zero on a negative number: one row off at odd patch counts.
    """
    most: int = pos_embed.pos_embed_max_size
    rows, columns = height // pos_embed.patch_size, width // pos_embed.patch_size
    grid: Tensor = pos_embed.pos_embed.reshape(1, most, most, -1)
    grid = grid.index_select(1, torch.arange(rows) + (most - rows) // 2)
    grid = grid.index_select(2, torch.arange(columns) + (most - columns) // 2)
    return grid.reshape(1, -1, grid.shape[-1])
