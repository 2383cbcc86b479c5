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
    velocity: Tensor  # (B, C, h, w), the student's own at (x, sigma)

    @property
    def x0(self) -> Tensor:
        """The student's clean picture as it predicts it from here."""
        return predicted_x0(self.x, self.sigma, self.velocity)


@torch.no_grad()
def rollout(
    velocity: Velocity, noise: Tensor, schedule: Tensor, index: Tensor, condition: Condition
) -> Anchors:
    """Euler's ODE from noise along ``schedule``; sample b stops at anchor ``index[b]``.

    A sample leaves the batch when it has arrived, so one with index i costs i forwards and the
    result is that of the full rollout.

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
    arrived_x, arrived_velocity = torch.empty_like(x), torch.empty_like(x)

    for step in range(1, int(steps[0]) + 1):
        here, under_way = int((steps >= step).sum()), int((steps > step).sum())
        sigma = schedule[step - 1].to(x.device).expand(here)
        v = velocity(x, sigma, condition[:here]).float()
        arrived_x[under_way:here], arrived_velocity[under_way:here] = x[under_way:], v[under_way:]
        if under_way:
            next_sigma = schedule[step].to(x.device).expand(under_way)
            x = euler(x[:under_way], v[:under_way], sigma[:under_way], next_sigma)

    back = rows.argsort()
    return Anchors(
        x=arrived_x[back],
        sigma=schedule[index - 1].to(x.device),
        velocity=arrived_velocity[back],
    )
