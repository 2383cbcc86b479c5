"""What of a network is trained and how: AdamW, the moving average, low-rank adapters.

Low-rank adapters (arXiv 2106.09685) are on every linear layer inside the transformer's blocks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW

from distill.recipe import LoraRecipe, OptimiserRecipe

_ADAPTER, _BASE = "default", ".base_layer."  # peft's own names


def blocks(network: nn.Module) -> list[nn.Module]:
    """A transformer's blocks: what is compiled, sharded and recomputed one at a time."""
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    return [block for blocks in lists for block in blocks]


def outline(network: nn.Module, low: bool = False) -> nn.Module:
    """A frozen copy without weights, on the meta device; buffers that no file holds are real.

    Args:
        network: its weights may be anywhere.
        low: bfloat16 for the weights that autocast would round to it in every pass: half the
            memory and the same bits. All others are float32.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        rounded = low and isinstance(module, nn.Linear | nn.Conv2d)
        dtype = torch.bfloat16 if rounded else torch.float32
        for parameter in module.parameters(recurse=False):
            empty = torch.empty_like(parameter, device="meta", dtype=dtype)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    for tensor in network.state_dict(keep_vars=True).values():  # buffers too
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta", dtype=dtype))
    return copy.deepcopy(network, memo)


@contextmanager
def moved(
    networks: Sequence[nn.Module],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Iterator[None]:
    """Networks on a device and in a type for a while; afterwards they are where they were."""
    modules = [module for network in networks for module in network.modules()]
    tensors = [(p, p.data) for module in modules for p in module.parameters(recurse=False)]
    buffers = [(module, dict(module._buffers)) for module in modules]
    try:
        for network in networks:
            network.to(device, dtype)
        yield
    finally:
        for parameter, data in tensors:
            parameter.data = data
        for module, before in buffers:
            module._buffers = before


def attention_kernel(device: str) -> AbstractContextManager[None]:
    """For trained passes: on a CPU matmul and softmax, 18 % faster at 64 tokens."""
    plain: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return plain if device == "cpu" else nullcontext()


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """A network's parameters that are trained, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The same without gradients, in the network's own memory."""
    return {name: p.detach() for name, p in trained(network).items()}


def rate_factor(done: int, total: int, recipe: OptimiserRecipe) -> float:
    """Of the learning rate after ``done`` of ``total`` steps: a ramp, 1, then half a cosine."""
    rise = min(1.0, (done + 1) / max(1, recipe.warmup))
    fall = recipe.decay * total
    left = min(1.0, (total - done) / fall) if fall else 1.0
    return rise * (1 - math.cos(math.pi * left)) / 2


class Optimiser:
    """AdamW over a network's trained parameters, as the recipe wants it.

    Args:
        network: whose parameters are trained.
        recipe: betas, the rate's rise and fall, clipping.
        rate: the highest learning rate.
        total: steps of the whole run.
    """

    def __init__(
        self, network: nn.Module, recipe: OptimiserRecipe, rate: float, total: int
    ) -> None:
        self.network, self.recipe, self.rate, self.total = network, recipe, rate, total
        self.adam = AdamW(
            list(trained(network).values()),
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    def step(self, done: int) -> Tensor:
        """Clip the gradients together, update, forget them.

        Args:
            done: steps taken before.

        Returns:
            The gradient's norm before clipping, a scalar on the device.
        """
        parameters = list(trained(self.network).values())
        for parameter in parameters:
            if parameter.grad is None:  # the text of some last blocks: a checkpoint wants moments
                parameter.grad = torch.zeros_like(parameter)
        norm: Any = nn.utils.clip_grad_norm_(parameters, self.recipe.grad_clip)
        for group in self.adam.param_groups:
            group["lr"] = self.rate * rate_factor(done, self.total, self.recipe)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    def state_dict(self) -> dict[str, Any]:
        """The moments, sharded where the network is."""
        return dict(get_optimizer_state_dict(self.network, self.adam))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        set_optimizer_state_dict(self.network, self.adam, state)


def ramped_decay(updates: int, greatest: float) -> float:
    """``min((1 + k) / (10 + k), greatest)`` after k updates: early averages forget quickly."""
    return min((1 + updates) / (10 + updates), greatest)


@torch.no_grad()
def move_towards(here: dict[str, Tensor], there: dict[str, Tensor], part: float) -> None:
    """``here <- (1 - part) * here + part * there``, tensor by tensor in place."""
    torch._foreach_lerp_(list(here.values()), list(there.values()), part)


class Average:
    """The average beside the network: one more tensor for each trained parameter, no more.

    Where the network is sharded, so is its average.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.values = {name: value.clone() for name, value in weights_of(network).items()}

    def update(self, decay: float) -> None:
        """Move towards the network's parameters as they are now."""
        move_towards(self.values, weights_of(self.network), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the network holds the averages, and this object its parameters."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the network's parameters."""
        for name, value in weights_of(self.network).items():
            kept = value.clone()
            value.copy_(self.values[name])
            self.values[name].copy_(kept)


def add_lora(network: nn.Module, recipe: LoraRecipe, seed: int) -> None:
    """Put adapters into a network; afterwards they alone are trained.

    Their product starts at zero, one factor of it at random: alike in every process.
    """
    inside = {id(layer) for block in blocks(network) for layer in block.modules()}
    names = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) in inside
    ]
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names)
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)
        for layer in network.modules():
            if isinstance(layer, LoraLayer):  # also where the layer below has no weights yet
                for adapter in (layer.lora_A, layer.lora_B):
                    adapter.to_empty(device="cpu")
                layer.reset_lora_parameters(_ADAPTER, True)


def plain_name(name: str) -> str:
    """A weight's name in the teacher: without adapters, and outside the fake teacher."""
    return name.removeprefix("transformer.").replace(_BASE, ".")


def merged(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight that a file holds, with what adapters have learnt added, one after the other.

    Slices are gathered: all processes go through them together.
    """
    state = network.state_dict()
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        weight = _whole(tensor)
        if name.endswith(f"{_BASE}weight"):
            layer: Any = network.get_submodule(name.removesuffix(f"{_BASE}weight"))
            of = name.removesuffix(f"{_BASE}weight")
            down, up = (_whole(state[f"{of}.lora_{side}.{_ADAPTER}.weight"]) for side in "AB")
            weight = weight + layer.scaling[_ADAPTER] * (up @ down)
        yield plain_name(name), weight


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
