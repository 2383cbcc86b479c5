"""FLUX.1: the pooled text of a CLIP, a T5 without masks, and rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.adapters.packing import PATCH
from export.architectures.architecture import Architecture, eager, with_tables
from export.precision import cast
from export.tokenizers import PipelineTokenizer, padded

_POSITIONS = 512  # rows or columns of image tokens that the tables hold


class Flux(Architecture):
    """Exports what ``FluxAdapter`` adapts."""

    def tokenizers(self) -> list[PipelineTokenizer]:
        """CLIP's and T5's."""
        pipeline = self.pipeline
        return [
            padded(pipeline.tokenizer, pipeline.tokenizer_max_length),
            padded(pipeline.tokenizer_2, self.adapter.max_sequence_length),
        ]

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """CLIP and T5 in one module."""
        return FluxTextEncoder(self.pipeline, dtype)

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """With rotary embeddings from float32 tables, and what guidance is embedded as."""
        transformer = with_tables(super().transformer(dtype), _POSITIONS)
        if self.adapter.guidance_embedding:
            embed: Any = transformer.time_text_embed
            guidance = torch.tensor([self.adapter.guidance_scale]).to(dtype) * 1000
            with torch.no_grad():
                embedded = embed.guidance_embedder(embed.time_proj(guidance).to(dtype))
            embed.guidance_embedder = _Embedded(embedded)
        return transformer

    @property
    def longest_side(self) -> int:
        """Where the tables end, in pixels."""
        return _POSITIONS * PATCH * int(self.pipeline.vae_scale_factor)


class _Embedded(nn.Module):
    """The embedding (1, D) of all that comes.

    Made of a constant in the graph, OpenVINO folds it by other kernels for one sample than for
    several, with other last bits.
    """

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Buffer(embedding)

    def forward(self, _: Tensor) -> Tensor:
        return self.embedding


class FluxTextEncoder(nn.Module):
    """``FluxPipeline.encode_prompt`` from the token ids on."""

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.clip = cast(pipeline.text_encoder, dtype)
        self.t5 = eager(pipeline.text_encoder_2, dtype)

    def forward(self, *input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) of both tokenizers -> ``prompt_embeds`` (B, T, D) and ``pooled`` (B, P)."""
        clip_ids, t5_ids = input_ids
        return self.t5(t5_ids)[0].float(), self.clip(clip_ids).pooler_output.float()
