"""Exponential moving average of a network's trained parameters, with a ramp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ramped_decay(updates: int, greatest: float) -> float:
    """``min((1 + k) / (10 + k), greatest)`` after k updates: early averages forget quickly."""
    return min((1 + updates) / (10 + updates), greatest)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """A network's parameters that are trained, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


@torch.no_grad()
def move_towards(values: Sequence[Tensor], targets: Sequence[Tensor], part: float) -> None:
    """``values <- (1 - part) * values + part * targets``, tensor by tensor in place."""
    torch._foreach_lerp_(list(values), list(targets), part)


class Average:
    """The average beside the network: one more tensor for each trained parameter, no more.

    Where the network is sharded, so is its average.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.values = {name: p.detach().clone() for name, p in trained(network).items()}

    def update(self, decay: float) -> None:
        """Move towards the network's parameters as they are now."""
        targets = [p.detach() for p in trained(self.network).values()]
        move_towards(list(self.values.values()), targets, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the network holds the averages, and this object its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in trained(self.network).items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)
