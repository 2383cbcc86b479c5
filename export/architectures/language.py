"""Language models for export: their own making of masks and caches does not pass through it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from export.precision import cast


def _seen(mask: Tensor) -> Tensor:
    """(B, 1, L, L) from a mask (B, L): no padding, and nothing ahead."""
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return causal & mask[:, None, None, :].bool()


def last_hidden(language_model: Any, ids: Tensor | None, mask: Tensor, **other: Tensor) -> Tensor:
    """Ids and mask (B, L) -> the last layer's states behind its norm, (B, L, D).

    ``other`` are further inputs, such as embeddings in the place of ids.
    """
    seen = _seen(mask)
    # A sliding window is longer than these texts.
    masks = {"full_attention": seen, "sliding_attention": seen}
    states: Tensor = language_model(
        input_ids=ids, attention_mask=masks, use_cache=False, **other
    ).last_hidden_state
    return states


class InnerLayers(nn.Module):
    """A Qwen3's states behind some of its layers; those above the last of them are not kept.

    Args:
        language_model: with or without the head that answers with tokens.
        layers: how many layers are before each of the states.
        dtype: of the weights.
    """

    def __init__(self, language_model: Any, layers: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        kept = copy.copy(language_model.base_model)
        kept._modules = kept._modules | {"layers": kept.layers[: max(layers)], "norm": None}
        self.model = cast(kept, dtype)
        self.after = layers

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Ids and mask (B, L) -> states (B, L, D)."""
        seen = _seen(mask)
        states = self.model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        embeddings = self.model.rotary_emb(states, positions)
        found = []
        for number, layer in enumerate(self.model.layers, 1):
            states = layer(states, attention_mask=seen, position_embeddings=embeddings)
            if number in self.after:
                found.append(states)
        return found
