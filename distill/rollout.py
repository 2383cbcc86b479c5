"""The student's own trajectory, as far as each sample needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.flow import euler, predicted_x0

Velocity = Callable[[Tensor, Tensor, Condition], Tensor]
"""``v(x, sigma, condition)``: (B, C, h, w), (B,), B rows -> (B, C, h, w)."""


@dataclass(frozen=True)
class Anchors:
    """Where a rollout stopped, sample by sample, float32."""

    x: Tensor  # (B, C, h, w), the state at the anchor
    sigma: Tensor  # (B,)
    velocity: Tensor  # (B, C, h, w), the student's own at (x, sigma); may carry its gradient

    @property
    def x0(self) -> Tensor:
        """The student's clean picture as it predicts it from here, without gradient."""
        return predicted_x0(self.x, self.sigma, self.velocity.detach())


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
