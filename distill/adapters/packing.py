"""Image tokens as the Flux family takes them: two by two latents a token, positions by number.

Positions are whole numbers: what casts floating-point inputs must not round them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

PATCH = 2  # latents a side; fixed in the pipelines, whose patch_size counts packed ones


def pack(x: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> tokens (B, h/2 * w/2, 4C), row by row."""
    return pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens (B, rows * columns, 4C) -> latents (B, C, 2 * rows, 2 * columns)."""
    batch, _, channels = tokens.shape
    return pixel_shuffle(tokens.transpose(1, 2).reshape(batch, channels, rows, columns), PATCH)


def text_ids(tokens: int, device: torch.device) -> Tensor:
    """Positions of the text tokens, (T, 3): modality 0, then the token's number twice."""
    number = torch.arange(tokens, device=device)
    return torch.stack([torch.zeros_like(number), number, number], dim=-1)


def image_ids(rows: int, columns: int, start: int, device: torch.device) -> Tensor:
    """Positions of the image tokens, (rows * columns, 3): modality 1, row and column.

    Both count from ``start``, behind the text.
    """
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns) + start
    column = torch.arange(columns, device=device)[None].expand(rows, columns) + start
    return torch.stack([torch.ones_like(row), row, column], dim=-1).flatten(0, 1)


class RotaryTables(nn.Module):
    """A transformer's ``pos_embed`` by table: computed in float64 as there, looked up in float32.

    TensorRT has no float64; float32 arithmetic would be off by a ten-thousandth at position 1000.

    Args:
        pos_embed: diffusers' own, with ``axes_dim`` and ``theta``.
        positions: how many the tables hold, on each axis.
    """

    def __init__(self, pos_embed: Any, positions: int) -> None:
        super().__init__()
        self.axes = len(pos_embed.axes_dim)
        for axis, width in enumerate(pos_embed.axes_dim):
            cosine, sine = get_1d_rotary_pos_embed(
                width,
                torch.arange(positions),
                theta=pos_embed.theta,
                repeat_interleave_real=True,
                use_real=True,
                freqs_dtype=torch.float64,
            )
            self.register_buffer(f"cosine_{axis}", cosine, persistent=False)
            self.register_buffer(f"sine_{axis}", sine, persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (N, axes) -> cosines and sines (N, D), float32."""
        cosines, sines = (
            [
                getattr(self, f"{kind}_{axis}").index_select(0, ids[:, axis])
                for axis in range(self.axes)
            ]
            for kind in ("cosine", "sine")
        )
        return torch.cat(cosines, dim=-1), torch.cat(sines, dim=-1)
