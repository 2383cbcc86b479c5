"""Cast a component for export; what must stay float32 stays."""

from __future__ import annotations

import copy
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
