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


def grid_ids(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every image token, (rows * columns,) both."""
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=device)[None].expand(rows, columns)
    return row.flatten(), column.flatten()


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
