"""What the exporter needs to know of an architecture besides its adapter."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from distill.adapters import Adapter
from export.tokenizers import PipelineTokenizer


class Architecture(Protocol):
    """One architecture's part of the export; everything else is written once for all."""

    adapter: Adapter

    def tokenizers(self) -> list[PipelineTokenizer]:
        """The pipeline's tokenizers, in the order of the text encoder's inputs."""

    def text_inputs(self) -> dict[str, Tensor]:
        """Example tokens by input name: ``input_ids_0``..., two rows each."""

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """A module that does what the pipeline's ``encode_prompt`` does with the tokens.

        Takes ``text_inputs`` in their order and gives ``prompt_embeds`` (B, T, D) and, if the
        architecture has it, ``pooled`` (B, P), both float32. Like ``transformer`` a copy with
        weights in ``dtype`` that torch's exporter understands.
        """

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """The adapter's transformer as a copy for export, for the adapter's ``velocity``."""

    def transformer_inputs(self) -> dict[str, Tensor]:
        """Example inputs by name, two rows each: latents, sigma, prompt_embeds, pooled if any.

        Any sizes do, as long as no two dynamic axes have the same one.
        """

    @property
    def longest_side(self) -> int | None:
        """Where the position embeddings end, in pixels; ``None`` if they do not."""
