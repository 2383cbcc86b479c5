"""What an update costs in forwards: hooks on the networks count the samples that pass.

One sample through one forward is one unit, wherever it happens: a recomputation in the backward
pass counts like any other forward, and the rest of a backward pass counts as two. A trained pass
thus costs three units, or four where activations are recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from distill.networks import blocks


class Units:
    """Counts from now on for networks that share nothing; ``total`` is the units so far."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.total = 0
        for network in networks:
            # The first block, not the network: it is what runs again when activations are.
            blocks(network)[0].register_forward_pre_hook(self._forward, with_kwargs=True)
            network.register_forward_hook(self._output)

    def _forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.total += len(tensors[0])

    def _output(self, _: nn.Module, args: tuple[Any, ...], output: tuple[Tensor]) -> None:
        if output[0].requires_grad:
            output[0].register_hook(self._backward)  # type: ignore[no-untyped-call]  # torch's

    def _backward(self, gradient: Tensor) -> None:
        self.total += 2 * len(gradient)
