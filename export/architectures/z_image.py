"""Z-Image: a Qwen3 without its last layer, and rotary tables on three axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from export.architectures.architecture import Architecture
from export.architectures.language import InnerLayers
from export.architectures.rotary import Turns
from export.tokenizers import PipelineTokenizer, chat


class ZImage(Architecture):
    """Exports what ``ZImageAdapter`` adapts."""

    masks = True

    def tokenizers(self) -> list[PipelineTokenizer]:
        """Qwen3's, of a chat; what diffusers calls thinking leaves its template out."""
        return [chat(self.pipeline.tokenizer, self.adapter.max_sequence_length, thinking=True)]

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Up to the layer before the last."""
        encoder = self.pipeline.text_encoder
        layers = (encoder.config.num_hidden_layers - 1,)
        return ZImageTextEncoder(InnerLayers(encoder, layers, dtype))

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """With rotary embeddings from tables of real numbers."""
        transformer = super().transformer(dtype)
        transformer.rope_embedder = Tables(transformer.rope_embedder)
        return transformer

    @property
    def longest_side(self) -> int:
        """Where the tables end, in pixels."""
        tokens: int = min(self.pipeline.transformer.config.axes_lens[1:])
        return tokens * self.adapter.multiple


class ZImageTextEncoder(nn.Module):
    """``ZImagePipeline.encode_prompt`` from the token ids on, padded again."""

    def __init__(self, layers: InnerLayers) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T) -> ``prompt_embeds`` (B, T, D) and ``prompt_mask`` (B, T)."""
        ids, mask = tokens
        (states,) = self.layers(ids, mask)
        return states.float() * mask[..., None], mask.clone()


class Tables(nn.Module):
    """``RopeEmbedder`` with pairs for complex numbers."""

    def __init__(self, rope_embedder: Any) -> None:
        super().__init__()
        numbers = rope_embedder.precompute_freqs_cis(
            rope_embedder.axes_dims, rope_embedder.axes_lens, theta=rope_embedder.theta
        )
        for axis, turns in enumerate(numbers):
            self.register_buffer(f"turns_{axis}", torch.view_as_real(turns), persistent=False)
        self.axes = len(numbers)

    def forward(self, positions: Tensor) -> Turns:
        """Positions (N, 3) -> turns (N, D/2)."""
        pairs = [
            getattr(self, f"turns_{axis}").index_select(0, positions[:, axis])
            for axis in range(self.axes)
        ]
        return Turns(torch.cat(pairs, dim=1))
