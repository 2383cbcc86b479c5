"""What the trainer and the exporter see of an architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """What the transformer is conditioned on, one row a prompt."""

    prompt_embeds: Tensor  # (B, T, D)
    pooled: Tensor | None  # (B, P); None where the architecture has no pooled text

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Condition:
        return Condition(
            self.prompt_embeds[rows], None if self.pooled is None else self.pooled[rows]
        )

    def to(self, device: torch.device | str) -> Condition:
        """The same rows on another device."""
        return Condition(
            self.prompt_embeds.to(device), None if self.pooled is None else self.pooled.to(device)
        )

    def expand(self, rows: int) -> Condition:
        """Repeat a single row, without copying it."""
        return Condition(
            self.prompt_embeds.expand(rows, -1, -1),
            None if self.pooled is None else self.pooled.expand(rows, -1),
        )

    @staticmethod
    def cat(conditions: list[Condition]) -> Condition:
        """Stack the rows of several conditions of one architecture."""
        pooled = [c.pooled for c in conditions if c.pooled is not None]
        return Condition(
            torch.cat([c.prompt_embeds for c in conditions]), torch.cat(pooled) if pooled else None
        )


class Adapter(Protocol):
    """One architecture. Noise levels are sigmas: 1 is noise, 0 the picture."""

    name: str
    pipeline: Any  # diffusers' own, whose components are used as they are
    max_sequence_length: int  # text tokens, besides those of SD3's CLIPs

    @property
    def transformer(self) -> nn.Module:
        """The pipeline's velocity network."""

    def encode(self, prompts: list[str]) -> Condition:
        """One row a prompt, as the pipeline encodes it; ``""`` is the null condition."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents, for a size in pixels.

        Raises:
            DistillError: the size is no multiple of what the VAE and the patches divide it by.
        """

    def sigmas(self, steps: int, height: int, width: int) -> list[float]:
        """The shifted Euler grid of ``steps`` even steps: ``steps + 1`` values from 1.0 to 0.0."""

    def shift(self, sigmas: Tensor, height: int, width: int) -> Tensor:
        """The scheduler's own shift of each sigma, any shape, as the pipeline would apply it."""

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity eps - x0, (B, C, h, w), without guidance.

        Args:
            model: the transformer or a network of its architecture.
            x: noisy latents (B, C, h, w).
            sigma: (B,) in [0, 1].
            condition: B rows.
        """

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """The velocity that the pipeline samples along under classifier-free guidance.

        Args:
            with_prompt: ``velocity`` for the prompts, (B, C, h, w).
            without: ``velocity`` for the null condition, at the same points.
            scale: 1 is ``with_prompt``.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), nominally in [-1, 1], not clamped."""
