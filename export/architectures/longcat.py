"""LongCat: a Qwen2.5-VL's language half behind a prompt template, and rotary positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import LongCatImagePipeline
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn

from distill.adapters.longcat import LongCatAdapter
from export.precision import cast
from export.tokenizers import PipelineTokenizer, Tokens

# Positions that the tables hold: the text's, then the rows or columns of image tokens.
_POSITIONS = 2048


class LongCat:
    """Exports what ``LongCatAdapter`` adapts."""

    def __init__(self, adapter: LongCatAdapter) -> None:
        self.adapter = adapter
        self._pipeline = adapter.pipeline

    def tokenizers(self) -> list[PipelineTokenizer]:
        """Qwen's."""
        tokenizer, length = self._pipeline.tokenizer, self.adapter.max_sequence_length
        return [
            PipelineTokenizer(tokenizer, length, tokenizer.pad_token_id, self._tokens, True),
        ]

    def text_inputs(self) -> dict[str, Tensor]:
        """The prompt's ids and mask; the template is in the graph."""
        (tokenizer,) = self.tokenizers()
        ids = torch.full((2, tokenizer.length), tokenizer.pad_id)
        return {"input_ids_0": ids, "attention_mask_0": torch.zeros_like(ids)}

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The language model with the template around the prompt."""
        return LongCatTextEncoder(self._pipeline, dtype)

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """With rotary embeddings from float32 tables."""
        transformer = cast(self.adapter.transformer, dtype)
        transformer.pos_embed = RotaryTables(transformer.pos_embed)
        return transformer

    def transformer_inputs(self) -> dict[str, Tensor]:
        """Two samples of 4 x 6 image tokens."""
        config = self._pipeline.transformer.config
        return {
            "latents": torch.zeros(2, config.in_channels // 4, 8, 12),
            "sigma": torch.ones(2),
            "prompt_embeds": torch.zeros(2, 7, config.joint_attention_dim),
        }

    @property
    def longest_side(self) -> int:
        """Where the tables end, in pixels."""
        tokens = _POSITIONS - self.adapter.max_sequence_length
        return tokens * 2 * int(self._pipeline.vae_scale_factor)

    def _tokens(self, prompts: list[str]) -> Tokens:
        ids, mask = _recorded(self._pipeline, prompts)
        prefix, suffix = _template(self._pipeline)
        inner = slice(len(prefix), -len(suffix))
        return Tokens(ids[:, inner].numpy(), mask[:, inner].numpy())


class LongCatTextEncoder(nn.Module):
    """``LongCatImagePipeline.encode_prompt`` from the prompt's ids on."""

    prefix: Tensor
    suffix: Tensor

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.language_model = cast(pipeline.text_encoder.model.language_model, dtype)
        for name, ids in zip(("prefix", "suffix"), _template(pipeline), strict=True):
            self.register_buffer(name, torch.tensor(ids)[None])

    def forward(self, *tokens: Tensor) -> tuple[Tensor]:
        """Ids and mask (B, 512) of the prompt -> ``prompt_embeds`` (B, 512, D)."""
        input_ids, attention_mask = tokens
        rows = input_ids.shape[0]
        prefix, suffix = self.prefix.expand(rows, -1), self.suffix.expand(rows, -1)
        ids = torch.cat([prefix, input_ids, suffix], dim=1)
        mask = torch.cat([torch.ones_like(prefix), attention_mask, torch.ones_like(suffix)], dim=1)
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        seen = causal & mask[:, None, None, :].bool()  # (B, 1, L, L): no padding, nothing ahead
        # transformers' own mask making does not pass through the exporter. A sliding window is
        # longer than this text.
        masks = {"full_attention": seen, "sliding_attention": seen}
        hidden = self.language_model(input_ids=ids, attention_mask=masks, use_cache=False)
        embeds: Tensor = hidden.last_hidden_state[:, prefix.shape[1] : length - suffix.shape[1]]
        return (embeds.float(),)


class RotaryTables(nn.Module):
    """``LongCatImagePosEmbed`` by table: computed in float64 as there, looked up in float32.

    TensorRT has no float64; float32 arithmetic would be off by a ten-thousandth at position 1000.
    """

    def __init__(self, pos_embed: Any) -> None:
        super().__init__()
        self.axes = len(pos_embed.axes_dim)
        for axis, width in enumerate(pos_embed.axes_dim):
            cosine, sine = get_1d_rotary_pos_embed(
                width,
                torch.arange(_POSITIONS),
                theta=pos_embed.theta,
                repeat_interleave_real=True,
                use_real=True,
                freqs_dtype=torch.float64,
            )
            self.register_buffer(f"cosine_{axis}", cosine, persistent=False)
            self.register_buffer(f"sine_{axis}", sine, persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (N, 3) -> cosines and sines (N, D), float32."""
        parts = [self._look_up(axis, ids[:, axis]) for axis in range(self.axes)]
        cosines, sines = zip(*parts, strict=True)
        return torch.cat(cosines, dim=-1), torch.cat(sines, dim=-1)

    def _look_up(self, axis: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        tables = (getattr(self, f"cosine_{axis}"), getattr(self, f"sine_{axis}"))
        cosine, sine = (table.index_select(0, positions) for table in tables)
        return cosine, sine


def _template(pipeline: Any) -> tuple[list[int], list[int]]:
    """Ids before and after the prompt's."""
    texts = (pipeline.prompt_template_encode_prefix, pipeline.prompt_template_encode_suffix)
    prefix, suffix = (
        list(pipeline.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    )
    return prefix, suffix


class _Recorder(nn.Module):
    """Takes the text encoder's place and keeps what it is given."""

    device = torch.device("cpu")

    def forward(self, **inputs: Any) -> Any:
        self.inputs = inputs
        return SimpleNamespace(hidden_states=[inputs["input_ids"][..., None]])


def _recorded(pipeline: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask that the pipeline's ``encode_prompt`` gives its text encoder, (B, L)."""
    recorder = _Recorder()
    text = LongCatImagePipeline(
        scheduler=pipeline.scheduler,
        vae=None,
        text_encoder=recorder,
        tokenizer=pipeline.tokenizer,
        text_processor=None,
        transformer=None,
    )
    text.encode_prompt(prompts)
    return recorder.inputs["input_ids"], recorder.inputs["attention_mask"]
