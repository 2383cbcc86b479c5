"""The text encoder graph: token ids of every tokenizer -> what the transformer reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.graphs import Graph
from export.tokenizers import pipeline_tokenizers

if TYPE_CHECKING:
    from distill.adapters import Sd3Adapter


class Sd3TextEncoder(nn.Module):
    """``StableDiffusion3Pipeline.encode_prompt`` from the token ids on, without guidance."""

    def __init__(self, adapter: Sd3Adapter) -> None:
        super().__init__()
        pipeline = adapter.pipeline
        self.clips = nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2])
        self.t5 = pipeline.text_encoder_3
        # Without a T5 the pipeline appends this many zero tokens of this width.
        self.zero_tokens = adapter.max_sequence_length
        self.width: int = pipeline.transformer.config.joint_attention_dim

    def forward(self, *input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) of each tokenizer -> ``prompt_embeds`` (B, T, D) and ``pooled`` (B, P)."""
        outputs = [
            clip(ids, output_hidden_states=True)
            for clip, ids in zip(self.clips, input_ids, strict=False)
        ]
        clip_embeds = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        if self.t5 is not None:
            t5_embeds = self.t5(input_ids[2])[0]
        else:
            t5_embeds = clip_embeds.new_zeros(clip_embeds.shape[0], self.zero_tokens, self.width)
        missing = t5_embeds.shape[-1] - clip_embeds.shape[-1]
        clip_embeds = nn.functional.pad(clip_embeds, (0, missing))
        return torch.cat([clip_embeds, t5_embeds], dim=1), pooled


@contextmanager
def text_encoder_graph(adapter: Sd3Adapter) -> Iterator[Graph]:
    """The adapter's text encoders as one graph; T5 attends eagerly meanwhile.

    T5's position bias under ``scaled_dot_product_attention`` does not pass through the exporter.
    """
    t5 = adapter.pipeline.text_encoder_3
    attention = t5.config._attn_implementation if t5 is not None else None
    if t5 is not None:
        t5.set_attn_implementation("eager")
    try:
        inputs = {
            f"input_ids_{i}": torch.full((2, tokenizer.length), tokenizer.pad_id)
            for i, tokenizer in enumerate(pipeline_tokenizers(adapter))
        }
        yield Graph(
            module=Sd3TextEncoder(adapter),
            inputs=inputs,
            outputs=("prompt_embeds", "pooled"),
            dynamic_shapes=(tuple({0: "batch"} for _ in inputs),),
        )
    finally:
        if t5 is not None:
            t5.set_attn_implementation(attention)
