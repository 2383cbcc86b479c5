"""Exponential moving average of a network's parameters, with a ramp."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ramped_decay(updates: int, greatest: float) -> float:
    """``min((1 + k) / (10 + k), greatest)`` after k updates: early averages forget quickly."""
    return min((1 + updates) / (10 + updates), greatest)


def averaged_copy(network: nn.Module) -> nn.Module:
    """A frozen copy to average into."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def move_towards(network: nn.Module, target: nn.Module, part: float) -> None:
    """``network <- (1 - part) * network + part * target``, parameter by parameter in place."""
    torch._foreach_lerp_(list(network.parameters()), list(target.parameters()), part)
