"""Draws of CDM: the schedule of every iteration and the noise levels the teachers see.

All functions are pure in their generator, whose device is the device of the result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

SIGMA_MIN, SIGMA_MAX = 0.02, 0.98

Shift = Callable[[Tensor], Tensor]


def dynamic_schedule(
    n_max: int,
    low: float,
    high: float,
    shift: Shift,
    generator: Generator,
    stratified: bool = False,
) -> Tensor:
    """A new schedule of ``N ~ U{1..n_max}`` anchors, descending from 1.0; float32 (N,).

    Args:
        n_max: the greatest number of anchors.
        low: interior anchors lie in [low, high] before the shift.
        high: see ``low``.
        shift: the scheduler's own shift of unshifted sigmas.
        generator: on the CPU, so that the host knows N without waiting for a device.
        stratified: one uniform draw in each of N - 1 equal bins, instead of independent draws.
    """
    n = int(torch.randint(1, n_max + 1, (), generator=generator))
    draws = torch.rand(n - 1, generator=generator)
    if stratified and n > 1:
        draws = (torch.arange(n - 1) + draws) / (n - 1)
    interior = low + (high - low) * draws
    return shift(torch.cat([torch.ones(1), interior.sort(descending=True).values]))


def fixed_schedule(steps: int, shift: Shift) -> Tensor:
    """The even grid that a sampler of so many steps uses: shifted 1, 1 - 1/steps, ...; (steps,)."""
    return shift(torch.tensor([1.0 - i / steps for i in range(steps)]))


def uniform_index(anchors: int, batch: int, generator: Generator, shared: bool = False) -> Tensor:
    """``i ~ U{1..anchors}`` for each sample, or one for all that ``shared`` it; int64 (batch,)."""
    draws = torch.randint(1, anchors + 1, (1 if shared else batch,), generator=generator)
    return draws.expand(batch)


def uniform_sigmas(batch: int, generator: Generator, cap: Tensor | None = None) -> Tensor:
    """``s ~ U(0, cap)``, cap 1 where none is given, clamped to [0.02, 0.98]; float32 (batch,).

    Args:
        batch: how many.
        generator: decides the device.
        cap: (batch,), the student's own level for the CA loss.
    """
    draws = torch.rand(batch, generator=generator, device=generator.device)
    return (draws if cap is None else draws * cap).clamp(SIGMA_MIN, SIGMA_MAX)
