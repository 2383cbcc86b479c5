"""FLUX.2-klein: three layers of a Qwen3 side by side, and rotary positions on four axes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.adapters.flux2 import TEXT_LAYERS
from export.architectures.architecture import Architecture, with_tables
from export.architectures.language import InnerLayers
from export.tokenizers import PipelineTokenizer, chat

_POSITIONS = 512  # tokens of the text, rows or columns of the image


class Flux2Klein(Architecture):
    """Exports what ``Flux2KleinAdapter`` adapts."""

    masks = True

    def tokenizers(self) -> list[PipelineTokenizer]:
        """Qwen3's, of a chat without thinking."""
        return [chat(self.pipeline.tokenizer, self.adapter.max_sequence_length, thinking=False)]

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """As many layers as are asked for."""
        return Flux2KleinTextEncoder(InnerLayers(self.pipeline.text_encoder, TEXT_LAYERS, dtype))

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """With rotary embeddings from float32 tables."""
        positions = max(_POSITIONS, self.adapter.max_sequence_length)
        return with_tables(super().transformer(dtype), positions)

    @property
    def longest_side(self) -> int:
        """Where the tables end, in pixels."""
        return _POSITIONS * self.adapter.downscale


class Flux2KleinTextEncoder(nn.Module):
    """``Flux2KleinPipeline.encode_prompt`` from the token ids on."""

    def __init__(self, layers: InnerLayers) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, *tokens: Tensor) -> tuple[Tensor]:
        """Ids and mask (B, T) -> ``prompt_embeds`` (B, T, 3D)."""
        return (torch.cat(self.layers(*tokens), dim=-1).float(),)
