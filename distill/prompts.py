"""Prompts: read once, encoded once, drawn in shuffled epochs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from distill.adapters import Condition, Sd3Adapter
from distill.errors import DistillError

_ENCODED_TOGETHER = 32


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines do not count.

    Raises:
        DistillError: no such file, not UTF-8, or no prompt in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DistillError(f"prompt file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DistillError(f"prompt file {path} is not UTF-8 text") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DistillError(f"prompt file {path} is empty; expected one prompt a line")
    return prompts


def encode_prompts(adapter: Sd3Adapter, prompts: list[str]) -> Condition:
    """All prompts' embeddings, a row each. The encoders are frozen, so once is enough."""
    groups = [
        adapter.encode(prompts[start : start + _ENCODED_TOGETHER])
        for start in range(0, len(prompts), _ENCODED_TOGETHER)
    ]
    return Condition.cat(groups)


def rows_at(position: int, batch: int, count: int, seed: int) -> Tensor:
    """Which prompts the samples ``position .. position + batch - 1`` of a run use; int64 (batch,).

    Every epoch of ``count`` samples is a permutation of its own, so the position alone resumes it.
    """
    samples = range(position, position + batch)
    return torch.tensor([_epoch(s // count, count, seed)[s % count] for s in samples])


@lru_cache(maxsize=2)
def _epoch(epoch: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
