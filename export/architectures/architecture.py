"""What the exporter needs to know of an architecture besides its adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from distill.adapters import Adapter
from distill.adapters.packing import RotaryTables
from export.precision import cast
from export.tokenizers import PipelineTokenizer


class Architecture(ABC):
    """One architecture's part of the export; everything else is written once for all."""

    masks = False  # whether the text encoder takes masks
    # Of the example that graphs are exported with: the height and the width in image tokens.
    example = (4, 6)

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.pipeline = adapter.pipeline

    @abstractmethod
    def tokenizers(self) -> list[PipelineTokenizer]:
        """The pipeline's tokenizers, in the order of the text encoder's inputs."""

    @abstractmethod
    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """A module that does what the adapter's ``encode`` does with the tokens.

        Takes ``text_inputs`` in their order and gives the condition's tensors in theirs, float32.
        Like ``transformer`` a copy with weights in ``dtype`` that torch's exporter understands.
        """

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """The adapter's transformer as a copy for export, for the adapter's ``velocity``."""
        return cast(self.adapter.transformer, dtype)

    def vae(self, dtype: torch.dtype) -> nn.Module:
        """The pipeline's VAE as a copy for export, for the adapter's ``decode``."""
        vae: nn.Module = self.pipeline.vae
        return cast(vae, dtype)

    @property
    def longest_side(self) -> int | None:
        """Where the position embeddings end, in pixels; ``None`` if they do not."""
        return None

    def text_inputs(self) -> dict[str, Tensor]:
        """Example tokens by input name, two rows each: ids, and masks, of every tokenizer."""
        inputs = {}
        for k, tokenizer in enumerate(self.tokenizers()):
            ids = torch.full((2, tokenizer.length), tokenizer.pad_id)
            inputs[f"input_ids_{k}"] = ids
            if self.masks:
                inputs[f"attention_mask_{k}"] = torch.zeros_like(ids)
        return inputs


def eager(t5: nn.Module, dtype: torch.dtype) -> Any:
    """A T5 for export: its position bias under ``scaled_dot_product_attention`` does not export."""
    copy: Any = cast(t5, dtype)
    copy.set_attn_implementation("eager")
    return copy


def with_tables(transformer: nn.Module, positions: int) -> nn.Module:
    """A transformer with its rotary embeddings from float32 tables of so many positions."""
    transformer.pos_embed = RotaryTables(transformer.pos_embed, positions)
    return transformer
