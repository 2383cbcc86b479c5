"""AuraFlow's export: a masked UMT5, and position embeddings that end somewhere."""

import math

import torch
from torch import Tensor, nn

from export.architectures.architecture import Architecture
from export.precision import cast
from export.tokenizers import PipelineTokenizer, padded


class AuraFlow(Architecture):
    """Exports what ``AuraFlowAdapter`` adapts."""

    masks = True

    def tokenizers(self) -> list[PipelineTokenizer]:
        """UMT5's."""
        return [padded(self.pipeline.tokenizer, self.adapter.max_sequence_length)]

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """With the mask applied to what it gives."""
        return TextEncoder(cast(self.pipeline.text_encoder, dtype))

    @property
    def longest_side(self) -> int:
        """Where the square of position embeddings ends."""
        config = self.pipeline.transformer.config
        side = math.isqrt(config.pos_embed_max_size)
        return int(side * config.patch_size * self.pipeline.vae_scale_factor)


class TextEncoder(nn.Module):
    """``AuraFlowPipeline.encode_prompt`` from the ids on."""

    def __init__(self, umt5: nn.Module) -> None:
        super().__init__()
        self.umt5 = umt5
        umt5.set_attn_implementation("eager")  # type: ignore[operator]

    def forward(self, *tokens: Tensor) -> tuple[Tensor]:
        """Ids and mask (B, T) -> ``text`` (B, T, D)."""
        input_ids, attention_mask = tokens
        embeds: Tensor = self.umt5(input_ids=input_ids, attention_mask=attention_mask)[0]
        return ((embeds * attention_mask[..., None]).float(),)
