"""Flow matching: ``x_s = (1 - s) * x0 + s * eps``, velocity ``eps - x0``, and Euler's ODE along it.

Everything is computed in float32, whatever precision the networks ran in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from distill.adapters import Condition

Velocity = Callable[[Tensor, Tensor, Condition], Tensor]
"""``v(x, sigma, condition)``: (B, C, h, w), (B,), B rows -> (B, C, h, w)."""


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigmas (B,) in float32, shaped to multiply ``x`` (B, ...)."""
    return sigma.float().reshape(-1, *[1] * (x.ndim - 1))


def predicted_x0(x: Tensor, sigma: Tensor, velocity: Tensor) -> Tensor:
    """``x0_hat = x - sigma * v``, float32 (B, ...)."""
    return x.float() - per_sample(sigma, x) * velocity.float()


def noised(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """``(1 - sigma) * x0 + sigma * noise``, float32 (B, ...)."""
    s = per_sample(sigma, x0)
    return (1 - s) * x0.float() + s * noise.float()


def euler(x: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """One step of the deterministic ODE, ``x + (next_sigma - sigma) * v``, float32 (B, ...)."""
    return x.float() + per_sample(next_sigma - sigma, x) * velocity.float()


@torch.no_grad()
def sample(velocity: Velocity, noise: Tensor, sigmas: list[float], condition: Condition) -> Tensor:
    """Latents (B, C, h, w) in float32, from noise of that shape along ``sigmas`` down to 0.0."""
    x = noise.float()
    for sigma, next_sigma in pairwise(sigmas):
        here, there = (x.new_full((len(x),), value) for value in (sigma, next_sigma))
        x = euler(x, velocity(x, here, condition), here, there)
    return x


@dataclass(frozen=True)
class Point:
    """Inputs of a velocity network: latents (B, C, h, w), noise levels (B,), B conditions."""

    x: Tensor
    sigma: Tensor
    condition: Condition

    def x0(self, velocity: Tensor) -> Tensor:
        """The clean picture that a velocity here leads to, float32 (B, C, h, w)."""
        return predicted_x0(self.x, self.sigma, velocity)


@dataclass(frozen=True)
class Anchors(Point):
    """Where a rollout stopped, sample by sample."""

    velocity: Tensor  # (B, C, h, w), the student's own here; may carry its gradient


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


@torch.no_grad()
def rollout(
    velocity: Velocity, noise: Tensor, schedule: Tensor, index: Tensor, condition: Condition
) -> Tensor:
    """Euler's ODE from noise along ``schedule``: each sample's state at its anchor, float32.

    A sample leaves the batch when it has arrived, so one with index i costs i - 1 forwards and the
    result is that of the full rollout. The velocity at the anchor is the caller's to compute: it is
    the forward that trains the student.

    Args:
        velocity: the student.
        noise: (B, C, h, w) at sigma 1.
        schedule: (N,) descending from 1.0, on the CPU.
        index: (B,) in 1..N, on the CPU, so that no batch size waits for a device.
        condition: B rows.
    """
    order = index.argsort(descending=True, stable=True)  # those still under way are a prefix
    steps = index[order]
    rows = order.to(noise.device)
    x, condition = noise.float()[rows], condition[rows]
    for step in range(1, int(steps[0])):
        here = int((steps > step).sum())
        sigma, next_sigma = (schedule[i].to(x.device).expand(here) for i in (step - 1, step))
        v = velocity(x[:here], sigma, condition[:here])
        x[:here] = euler(x[:here], v, sigma, next_sigma)
    return x[rows.argsort()]
