"""LongCat-Image-Edit: a whole Qwen2.5-VL, from the pixels of the picture that is edited."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from distill.adapters.packing import grid_ids
from export.architectures.language import last_hidden
from export.architectures.longcat import LongCat, template
from export.precision import cast


class LongCatEdit(LongCat):
    """Exports what ``LongCatEditAdapter`` adapts."""

    example = (14, 21)

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Vision tower and language model, with the template around picture and prompt."""
        return LongCatEditTextEncoder(self.pipeline, dtype)


class LongCatEditTextEncoder(nn.Module):
    """``LongCatImageEditPipeline.encode_prompt`` from the prompt's ids and the pixels on."""

    before: Tensor
    behind: Tensor
    suffix: Tensor

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        model = pipeline.text_encoder.model
        self.vision = Vision(model.visual, pipeline.image_processor_vl, dtype)
        self.language_model = cast(model.language_model, dtype)
        prefix, suffix = template(pipeline)
        place = prefix.index(pipeline.text_encoder.config.image_token_id)
        parts = {"before": prefix[:place], "behind": prefix[place + 1 :], "suffix": suffix}
        for name, ids in parts.items():
            self.register_buffer(name, torch.tensor(ids)[None])

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Ids and mask (B, 512), image (B, H, W, 3) in uint8 -> ``prompt_embeds`` (B, T, D)."""
        input_ids, attention_mask, image = inputs
        seen, rows, columns = self.vision(image)
        batch, embed = len(image), self.language_model.embed_tokens
        before, behind, suffix = (
            ids.expand(batch, -1) for ids in (self.before, self.behind, self.suffix)
        )
        text = torch.cat([behind, input_ids, suffix], dim=1)
        embeds = torch.cat([embed(before), seen.to(embed.weight.dtype), embed(text)], dim=1)
        text_mask = torch.cat(
            [torch.ones_like(behind), attention_mask, torch.ones_like(suffix)], dim=1
        )
        start, tokens = before.shape[1], rows * columns
        mask = torch.cat([text_mask.new_ones(batch, start + tokens), text_mask], dim=1)
        # Text counts on behind the longer side of the picture, and without padding.
        grid = grid_ids(rows, columns, image.device)
        end = torch.maximum(grid[0].max(), grid[1].max()) + 1
        number = (start + end + text_mask.cumsum(dim=1) - 1) * text_mask
        first = torch.arange(start, device=image.device)
        positions = torch.stack(
            [
                torch.cat([torch.cat([first, axis + start]).expand(batch, -1), number], dim=1)
                for axis in (torch.zeros_like(grid[0]), *grid)
            ]
        )
        hidden = last_hidden(
            self.language_model, None, mask, inputs_embeds=embeds, position_ids=positions
        )
        # From the token on that begins the picture.
        return (hidden[:, start - 1 : hidden.shape[1] - suffix.shape[1]].float(),)


class Vision(nn.Module):
    """Qwen2.5-VL's vision tower for one picture a row, of any size that its patches divide.

    Windows are a mask, so that no token is moved.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, tower: Any, processor: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.tower = cast(tower, dtype)
        self.merge: int = tower.spatial_merge_size
        self.patch: int = tower.patch_size
        self.window: int = tower.window_size // self.patch // self.merge
        self.register_buffer("mean", torch.tensor(processor.image_mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(processor.image_std), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Any, Any]:
        """Image (B, H, W, 3) -> states (B, rows * columns, D), rows and columns."""
        step = self.merge * self.patch
        rows, columns = image.shape[1] // step, image.shape[2] // step
        pixels = image.float()[:, : rows * step, : columns * step]  # all; torch has to be told
        pixels = (pixels / 255 - self.mean) / self.deviation
        # Patches in the order in which they are merged: (rows, columns, 2, 2).
        shape = (len(image), rows, self.merge, self.patch, columns, self.merge, self.patch, 3)
        patches = pixels.reshape(shape).permute(0, 1, 4, 2, 5, 7, 3, 6)
        tokens = rows * columns * self.merge**2
        patches = patches.reshape(len(image), tokens, 3, 1, self.patch**2)
        patches = patches.expand(-1, -1, -1, self.tower.patch_embed.temporal_patch_size, -1)
        kernel = self.tower.patch_embed.proj.weight.flatten(1)
        states = patches.flatten(2).to(kernel.dtype) @ kernel.T

        row, column = (
            each[:, None] * self.merge + inner
            for each, inner in zip(
                grid_ids(rows, columns, image.device),
                grid_ids(self.merge, self.merge, image.device),
                strict=True,
            )
        )
        row, column = row.flatten(), column.flatten()
        side = self.window * self.merge
        window = torch.stack([row // side, column // side])
        near = (window[:, :, None] == window[:, None]).all(dim=0)
        turns = self.tower.rotary_pos_emb(states, torch.stack([row, column], dim=-1))
        for number, block in enumerate(self.tower.blocks):
            mask = None if number in self.tower.fullatt_block_indexes else near
            states = states + self._attend(block.attn, block.norm1(states), mask, turns)
            states = states + block.mlp(block.norm2(states))
        merger = self.tower.merger
        merged = merger.ln_q(states).reshape(len(image), rows * columns, merger.hidden_size)
        return merger.mlp(merged), rows, columns

    def _attend(self, attention: Any, states: Tensor, mask: Tensor | None, turns: Any) -> Tensor:
        parts = attention.qkv(states).unflatten(-1, (3, attention.num_heads, attention.head_dim))
        query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        query, key = (_turned(each, *turns) for each in (query, key))
        found = scaled_dot_product_attention(query, key, value, mask, scale=attention.scaling)
        answer: Tensor = attention.proj(found.transpose(1, 2).flatten(2))
        return answer


def _turned(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: states (B, heads, N, D), cosines and sines (N, D) in float32."""
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cosine + torch.cat([-second, first], dim=-1) * sine).to(states.dtype)
