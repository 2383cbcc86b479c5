"""Cast a component for export; what must stay float32 stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """The type of a graph's weights and of the arithmetic between them.

    Whatever passes in and out of a graph is float32 (or integer) in each of them, and so are
    norms' statistics, timesteps, position tables and the last step to pixels. int8 graphs
    are written in float32, and quantized by ``export.int8``.
    """

    name: str
    dtype: torch.dtype
    opset: int


# bfloat16 convolutions begin with opset 22; 20 is what every runtime has known for years.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32, 20),
        Precision("fp16", torch.float16, 20),
        Precision("bf16", torch.bfloat16, 22),
        Precision("int8", torch.float32, 20),
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
def float32(module: nn.Module) -> Iterator[None]:
    """Meanwhile the module computes in float32, with little more memory than its weights have.

    A block, which is an entry of a ``ModuleList``, is in float32 only while it runs: there nearly
    all weights of a transformer are. What is float32 already is left alone.
    """
    blocks = list(_blocks(module))
    inside = {id(tensor) for block in blocks for tensor in _tensors(block)}
    outside = _Widened([each for each in _tensors(module) if id(each) not in inside])
    with ExitStack() as stack:
        for block in blocks:
            widened = _Widened(_tensors(block))
            before = block.register_forward_pre_hook(widened.put)
            after = block.register_forward_hook(widened.take_back, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        outside.put()
        stack.callback(outside.take_back)
        yield


class _Widened:
    """Contents in float32 for tensors of fewer bytes, and those they have."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._narrow = [
            (each, each.data)
            for each in tensors
            if each.is_floating_point() and each.dtype != torch.float32
        ]

    def put(self, *_: Any) -> None:
        for tensor, data in self._narrow:
            tensor.data = data.float()

    def take_back(self, *_: Any) -> None:
        for tensor, data in self._narrow:
            tensor.data = data


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Entries of the outermost lists of modules; diffusers leaves some of them empty."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else _blocks(child)


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(chain(module.parameters(), module.buffers()))
