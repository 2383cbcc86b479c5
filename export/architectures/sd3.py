"""SD3: three tokenizers, two CLIPs, a T5 if there is one, and position embeddings to be cropped."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from export.architectures.architecture import Architecture, eager
from export.precision import cast
from export.tokenizers import PipelineTokenizer, padded


class Sd3(Architecture):
    """Exports what ``Sd3Adapter`` adapts."""

    def tokenizers(self) -> list[PipelineTokenizer]:
        """CLIP-L, CLIP-G and, if present, T5; the pipeline uses no masks."""
        pipeline = self.pipeline
        lengths = [
            (pipeline.tokenizer, pipeline.tokenizer_max_length),
            (pipeline.tokenizer_2, pipeline.tokenizer_max_length),
            (pipeline.tokenizer_3, self.adapter.max_sequence_length),
        ]
        return [padded(each, length) for each, length in lengths if each is not None]

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """CLIPs and T5 in one module."""
        return Sd3TextEncoder(self.adapter, dtype)

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """With position embeddings that are cropped by index."""
        transformer = super().transformer(dtype)
        pos_embed: Any = transformer.pos_embed
        most = pos_embed.pos_embed_max_size
        # A table that nothing but Gather reads: OpenVINO then widens what is read of it alone.
        pos_embed.pos_embed = pos_embed.pos_embed.reshape(1, most, most, -1)
        pos_embed.cropped_pos_embed = partial(_crop, pos_embed)
        return transformer

    @property
    def longest_side(self) -> int:
        """Where the position embeddings end, in pixels."""
        pipeline = self.pipeline
        patches: int = pipeline.transformer.config.pos_embed_max_size
        return patches * int(pipeline.patch_size) * int(pipeline.vae_scale_factor)


class Sd3TextEncoder(nn.Module):
    """``StableDiffusion3Pipeline.encode_prompt`` from the token ids on, without guidance."""

    def __init__(self, adapter: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        pipeline = adapter.pipeline
        clips = (pipeline.text_encoder, pipeline.text_encoder_2)
        self.clips = nn.ModuleList([cast(clip, dtype) for clip in clips])
        t5 = pipeline.text_encoder_3
        self.t5 = None if t5 is None else eager(t5, dtype)
        # Without a T5 the pipeline appends this many zero tokens of this width.
        self.zero_tokens = adapter.max_sequence_length
        self.width: int = pipeline.transformer.config.joint_attention_dim

    def forward(self, *input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) of each tokenizer -> ``prompt_embeds`` (B, T, D) and ``pooled`` (B, P)."""
        outputs = [
            clip(ids, output_hidden_states=True)
            for clip, ids in zip(self.clips, input_ids, strict=False)
        ]
        clip_embeds = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1).float()
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1).float()
        if self.t5 is not None:
            t5_embeds = self.t5(input_ids[2])[0].float()
        else:
            t5_embeds = clip_embeds.new_zeros(clip_embeds.shape[0], self.zero_tokens, self.width)
        missing = t5_embeds.shape[-1] - clip_embeds.shape[-1]
        clip_embeds = nn.functional.pad(clip_embeds, (0, missing))
        return torch.cat([clip_embeds, t5_embeds], dim=1), pooled


def _crop(pos_embed: Any, height: int, width: int) -> Tensor:
    """``PatchEmbed.cropped_pos_embed`` by index, for latents of the given size.

    As a slice, the exporter turns ``(max - height) // 2`` into a division that rounds towards
    zero on a negative number: one row off at odd patch counts.
    """
    most: int = pos_embed.pos_embed_max_size
    rows, columns = height // pos_embed.patch_size, width // pos_embed.patch_size
    grid: Tensor = pos_embed.pos_embed
    grid = grid.index_select(1, torch.arange(rows) + (most - rows) // 2)
    grid = grid.index_select(2, torch.arange(columns) + (most - columns) // 2)
    return grid.reshape(1, -1, grid.shape[-1])
