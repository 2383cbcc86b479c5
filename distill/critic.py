"""The fake teacher: CDM's critic, which is told the anchor.

The student's x0_hat at an early anchor is blurred, at a late one sharp. A fake teacher that sees
both and cannot tell them apart answers with their mean: ``R - F`` then drives the early ones apart
and the late ones together, further with every update. Told the anchor's sigma, it follows each.
TDM (arXiv 2503.06674) tells its fake score the step for the same reason.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distill.adapters import Adapter, Condition

ANCHOR = "anchor"
_WAVES, _HIDDEN = 16, 128
_LOWEST, _HIGHEST = -1, 5  # octaves: a quarter of a turn over all sigmas, and sixteen turns


class AnchorEmbedding(nn.Module):
    """Sigmas of anchors (B,) -> (B, width); zero until it is trained.

    Args:
        width: of the text that it is added to.
        seed: of the first layer, alike in every process.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(2 * _WAVES, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, width)
            )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, sigma: Tensor) -> Tensor:
        """Sinusoids of sigma through the layers."""
        octaves = torch.linspace(_LOWEST, _HIGHEST, _WAVES, device=sigma.device)
        phase = sigma.float()[:, None] * math.pi * 2**octaves
        embedding: Tensor = self.layers(torch.cat([phase.sin(), phase.cos()], dim=1))
        return embedding


class FakeTeacher(nn.Module):
    """A transformer and what tells it the anchor: one module, sharded and trained as one.

    Args:
        transformer: of the teacher's architecture.
        adapter: the teacher's.
        embedding: None for a fake teacher that is not told.
    """

    def __init__(
        self,
        transformer: nn.Module,
        adapter: Adapter,
        embedding: AnchorEmbedding | None,
    ) -> None:
        super().__init__()
        self.transformer, self.adapter, self.embedding = transformer, adapter, embedding

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, C, h, w); the condition is ``told`` the anchors."""
        tensors = dict(condition.tensors)
        anchor = tensors.pop(ANCHOR)
        if self.embedding is not None:
            name, added = text(tensors), self.embedding(anchor)
            tensors[name] = tensors[name] + (added if tensors[name].ndim == 2 else added[:, None])
        return self.adapter.velocity(self.transformer, x, sigma, Condition(tensors))


def told(condition: Condition, anchor: Tensor) -> Condition:
    """A condition for the fake teacher, of pictures from the anchors of sigma ``anchor`` (B,)."""
    return Condition({**condition.tensors, ANCHOR: anchor})


def text(tensors: dict[str, Tensor]) -> str:
    """Which the anchor is added to: pooled text (B, P); without one, the tokens (B, T, D)."""
    axes = {name: t.ndim for name, t in tensors.items() if t.is_floating_point() and t.ndim > 1}
    return min(axes, key=axes.__getitem__)
