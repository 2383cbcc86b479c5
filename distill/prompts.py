"""Prompts: read once, drawn in shuffled epochs, encoded once or block by block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from distill.adapters import Adapter, Condition
from distill.prompt_sources import read_prompts

__all__ = ["PromptStream", "read_prompts"]

_ENCODED_TOGETHER = 8


class PromptStream:
    """The condition of every sample of a run.

    Up to ``in_memory`` prompts are encoded once. More are encoded as they are needed, for
    ``in_memory`` samples at a time; such a block starts at a multiple of that, so that a run that
    was interrupted encodes the same prompts together and gets the same bits.

    Args:
        adapter: its text encoders are on the CPU, but for the time of encoding.
        prompts: at least one.
        seed: of the epochs' order.
        in_memory: embeddings held at a time, in the CPU's memory.
        device: where encoding happens.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompts: list[str],
        seed: int,
        in_memory: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.adapter, self.prompts, self.seed = adapter, prompts, seed
        self.in_memory, self.device = in_memory, device
        self._block = -1
        self._groups: list[Condition] = []

    @property
    def sha256(self) -> str:
        """What two runs of the same prompts have in common."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()

    def at(self, samples: range) -> Condition:
        """The conditions of the run's samples of these numbers, on the CPU; a row each."""
        count = len(self.prompts)
        once = count <= self.in_memory
        order = rows_at(samples.start, len(samples), count, self.seed).tolist()
        rows = []
        for sample, row in zip(samples, order, strict=True):
            block, place = (0, row) if once else divmod(sample, self.in_memory)
            if block != self._block:
                self._encode_block(block, once)
            group, place = divmod(place, _ENCODED_TOGETHER)
            rows.append(self._groups[group][place : place + 1])
        return Condition.cat(rows)

    def encode(self, prompts: list[str]) -> Condition:
        """The conditions of any prompts, a row each, on the CPU; ``""`` is the null condition."""
        return Condition.cat(self._encoded(prompts))

    def _encode_block(self, block: int, once: bool) -> None:
        self._groups = []  # freed before the new ones are made
        if once:
            prompts = self.prompts
        else:
            rows = rows_at(block * self.in_memory, self.in_memory, len(self.prompts), self.seed)
            prompts = [self.prompts[row] for row in rows.tolist()]
        self._groups, self._block = self._encoded(prompts), block

    def _encoded(self, prompts: list[str]) -> list[Condition]:
        starts = range(0, len(prompts), _ENCODED_TOGETHER)
        with _on(self.device, self.adapter):
            return [
                self.adapter.encode(prompts[start : start + _ENCODED_TOGETHER]).to("cpu")
                for start in starts
            ]


@contextmanager
def _on(device: torch.device | str, adapter: Adapter) -> Iterator[None]:
    """Text encoders on a device for a while: training needs its memory for other things."""
    encoders = [m for name, m in adapter.networks.items() if name.startswith("text_encoder")]
    try:
        for encoder in encoders:
            encoder.to(device)
        yield
    finally:
        for encoder in encoders:
            encoder.to("cpu")


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
