"""Cast a component for export; what must stay float32 stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """The type of a graph's weights and of the arithmetic between them.

    Whatever passes in and out of a graph is float32 (or integer) in each of them, and so are
    norms' statistics, timesteps, position tables and the last step to pixels. int8 graphs
    are written in float32, and quantized by ``export.int8``. Where there are ``bits``,
    ``export.weights`` narrows the matrices alone to so many.
    """

    name: str
    dtype: torch.dtype
    opset: int
    bits: int | None = None


# bfloat16 convolutions begin with opset 22; 20 is what every runtime has known for years.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32, 20),
        Precision("fp16", torch.float16, 20),
        Precision("bf16", torch.bfloat16, 22),
        Precision("int8", torch.float32, 20),
        Precision("int8-weights", torch.bfloat16, 22, bits=8),
        Precision("int4-weights", torch.bfloat16, 22, bits=4),
    )
}


def cast(module: Module, dtype: torch.dtype) -> Module:
    """A copy of the module with its weights in ``dtype``; it shares those of that type already.

    As when transformers and diffusers load in ``dtype``: buffers that are not stored (tables of
    frequencies) stay as they are, and so does what a class names in ``_keep_in_fp32_modules``
    (T5's ``wo``, whose products leave float16's range).
    """
    kept = _kept(module)
    stored = module.state_dict(keep_vars=True)
    memo: dict[int, Any] = {id(each): each for each in (*module.parameters(), *module.buffers())}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and name not in kept:
            memo[id(tensor)] = _as(tensor, dtype)
    return copy.deepcopy(module, memo)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.detach().to(dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(converted, requires_grad=False)
    return converted


def _kept(module: nn.Module) -> set[str]:
    """The weights that some submodule's class wants in float32."""
    kept = set()
    for prefix, submodule in module.named_modules():
        wanted = set(getattr(submodule, "_keep_in_fp32_modules", None) or ())
        for name in submodule.state_dict() if wanted else ():
            if wanted & set(name.split(".")):
                kept.add(f"{prefix}.{name}" if prefix else name)
    return kept


@contextmanager
def float32(module: nn.Module, device: str = "cpu") -> Iterator[None]:
    """Meanwhile the module computes in float32, with little more memory than its weights have.

    A block, which is an entry of a ``ModuleList``, is in float32 and on the ``device`` only while
    it runs: there nearly all weights of a transformer are. What is so already is left alone.
    """
    blocks = list(_blocks(module))
    inside = {id(tensor) for block in blocks for _, _, tensor in _places(block)}
    outside = [place for place in _places(module) if id(place[2]) not in inside]
    with ExitStack() as stack:
        for block in blocks:
            widened = _Widened(_places(block), device)
            before = block.register_forward_pre_hook(widened.put)
            after = block.register_forward_hook(widened.take_back, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        others = _Widened(outside, device)
        others.put()
        stack.callback(others.take_back)
        yield


_Place = tuple[dict[str, Any], str, Tensor]  # where a module has a tensor, and that


class _Widened:
    """Tensors on a device, floating ones in float32, in the places of others."""

    def __init__(self, places: list[_Place], device: str) -> None:
        self._device = device
        self._own = [
            (owner, name, tensor)
            for owner, name, tensor in places
            if tensor.device.type != device
            or (tensor.is_floating_point() and tensor.dtype != torch.float32)
        ]

    def put(self, *_: Any) -> None:
        made: dict[int, Tensor] = {}  # tied weights stay tied
        for owner, name, tensor in self._own:
            if id(tensor) not in made:
                wide = torch.float32 if tensor.is_floating_point() else tensor.dtype
                moved = tensor.detach().to(self._device, wide)
                if isinstance(tensor, nn.Parameter):
                    moved = nn.Parameter(moved, requires_grad=False)
                made[id(tensor)] = moved
            owner[name] = made[id(tensor)]

    def take_back(self, *_: Any) -> None:
        for owner, name, tensor in self._own:
            owner[name] = tensor


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Entries of the outermost lists of modules; diffusers leaves some of them empty."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else _blocks(child)


def _places(module: nn.Module) -> list[_Place]:
    return [
        (owner, name, tensor)
        for each in module.modules()
        for owner in (each._parameters, each._buffers)
        for name, tensor in owner.items()
        if tensor is not None
    ]
