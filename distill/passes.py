"""Several batches through a network in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.rollout import Velocity


@dataclass(frozen=True)
class Point:
    """Inputs of a velocity network: latents (B, C, h, w), noise levels (B,), B conditions."""

    x: Tensor
    sigma: Tensor
    condition: Condition


def merged(velocity: Velocity, points: Mapping[str, Point]) -> dict[str, Tensor]:
    """The velocity at each point, from one forward over all of them."""
    if not points:
        return {}
    outputs = velocity(
        torch.cat([p.x for p in points.values()]),
        torch.cat([p.sigma for p in points.values()]),
        Condition.cat([p.condition for p in points.values()]),
    )
    parts = torch.split(outputs, [len(p.sigma) for p in points.values()])
    return dict(zip(points, parts, strict=True))
