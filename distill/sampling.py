"""The student's sampler: a plain Euler loop without guidance."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.flow import euler
from distill.rollout import Velocity


@torch.no_grad()
def sample(velocity: Velocity, noise: Tensor, sigmas: list[float], condition: Condition) -> Tensor:
    """Latents (B, C, h, w) in float32, from noise of that shape along ``sigmas`` down to 0.0."""
    x = noise.float()
    for sigma, next_sigma in pairwise(sigmas):
        here, there = (x.new_full((len(x),), value) for value in (sigma, next_sigma))
        x = euler(x, velocity(x, here, condition), here, there)
    return x
