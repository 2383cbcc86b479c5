"""LongCat: a Qwen2.5-VL's language half behind a prompt template, and rotary positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import LongCatImagePipeline
from torch import Tensor, nn

from distill.adapters.packing import PATCH
from export.architectures.architecture import Architecture, with_tables
from export.architectures.language import last_hidden
from export.precision import cast
from export.tokenizers import Encoded, PipelineTokenizer

# That the tables hold: the text's, then the rows or columns of image tokens.
_POSITIONS = 2048


class LongCat(Architecture):
    """Exports what ``LongCatAdapter`` adapts."""

    masks = True

    def tokenizers(self) -> list[PipelineTokenizer]:
        """Qwen's, of the prompt alone; the template is in the graph."""
        length = self.adapter.max_sequence_length
        return [PipelineTokenizer(self.pipeline.tokenizer, length, self._encode, quotation=True)]

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The language model with the template around the prompt."""
        return LongCatTextEncoder(self.pipeline, dtype)

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """With rotary embeddings from float32 tables."""
        return with_tables(super().transformer(dtype), _POSITIONS)

    @property
    def longest_side(self) -> int:
        """Where the tables end, in pixels."""
        tokens = _POSITIONS - self.adapter.max_sequence_length
        return int(tokens * PATCH * self.pipeline.vae_scale_factor)

    def _encode(self, prompts: list[str]) -> Encoded:
        """What ``encode_prompt`` gives its text encoder, without the template."""
        recorder = _Recorder()
        text = LongCatImagePipeline(
            scheduler=self.pipeline.scheduler,
            vae=None,
            text_encoder=recorder,
            tokenizer=self.pipeline.tokenizer,
            text_processor=None,
            transformer=None,
        )
        text.encode_prompt(prompts)
        prefix, suffix = template(text)
        inner = slice(len(prefix), -len(suffix))
        ids, mask = (recorder.inputs[name] for name in ("input_ids", "attention_mask"))
        return ids[:, inner].numpy(), mask[:, inner].numpy()


class LongCatTextEncoder(nn.Module):
    """``LongCatImagePipeline.encode_prompt`` from the prompt's ids on."""

    prefix: Tensor
    suffix: Tensor

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.language_model = cast(pipeline.text_encoder.model.language_model, dtype)
        for name, ids in zip(("prefix", "suffix"), template(pipeline), strict=True):
            self.register_buffer(name, torch.tensor(ids)[None])

    def forward(self, *tokens: Tensor) -> tuple[Tensor]:
        """Ids and mask (B, 512) of the prompt -> ``prompt_embeds`` (B, 512, D)."""
        input_ids, attention_mask = tokens
        rows = input_ids.shape[0]
        prefix, suffix = self.prefix.expand(rows, -1), self.suffix.expand(rows, -1)
        ids = torch.cat([prefix, input_ids, suffix], dim=1)
        mask = torch.cat([torch.ones_like(prefix), attention_mask, torch.ones_like(suffix)], dim=1)
        hidden = last_hidden(self.language_model, ids, mask)
        embeds = hidden[:, prefix.shape[1] : ids.shape[1] - suffix.shape[1]]
        return (embeds.float(),)


class _Recorder(nn.Module):
    """Takes the text encoder's place and keeps what it is given."""

    device = torch.device("cpu")

    def forward(self, **inputs: Any) -> Any:
        self.inputs = inputs
        return SimpleNamespace(hidden_states=[inputs["input_ids"][..., None]])


def template(pipeline: Any) -> tuple[list[int], list[int]]:
    """Ids before and after the prompt's."""
    texts = (pipeline.prompt_template_encode_prefix, pipeline.prompt_template_encode_suffix)
    prefix, suffix = (
        list(pipeline.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    )
    return prefix, suffix
