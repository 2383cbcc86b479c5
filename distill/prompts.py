"""Prompts: read once, drawn in shuffled epochs, encoded once or block by block."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import torch
from torch import Tensor

from distill.adapters import Adapter, Condition
from distill.networks import moved
from distill.parallel import Processes
from distill.prompt_sources import read_prompts

__all__ = ["PromptStream", "read_prompts"]

_ENCODED_TOGETHER = 8


class PromptStream:
    """The condition of every sample of a run.

    Prompts that every process may hold are encoded once, a part by each. More are encoded as they
    are needed, for ``in_memory`` samples at a time, by each process its own; such a block starts at
    a multiple of that, so that a run that was interrupted encodes the same prompts together and
    gets the same bits.

    Args:
        adapter: its text encoders are on the device for the time of encoding alone.
        prompts: at least one.
        seed: of the epochs' order.
        in_memory: embeddings that the processes hold together at a time, in the CPU's memory.
        processes: those that train together; this one alone unless given.
        batch: samples of all processes that follow each other.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompts: list[str],
        seed: int,
        in_memory: int,
        processes: Processes | None = None,
        batch: int = 1,
    ) -> None:
        self.adapter, self.prompts, self.seed = adapter, prompts, seed
        self.processes = processes or Processes("cpu")
        self.in_memory, self.share = in_memory, max(1, batch // self.processes.count)
        self._block = -1
        self._kept: dict[int, Condition] = {}  # by sample, or by prompt where all are held

    @property
    def sha256(self) -> str:
        """What two runs of the same prompts have in common."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()

    def at(self, samples: range) -> Condition:
        """The conditions of samples of these numbers, this process's; on the CPU, a row each."""
        once = len(self.prompts) <= self.in_memory // self.processes.count
        order = rows_at(samples.start, len(samples), len(self.prompts), self.seed).tolist()
        rows = []
        for sample, row in zip(samples, order, strict=True):
            block = 0 if once else sample // self.in_memory
            if block != self._block:
                self._kept, self._block = {}, block  # freed before the new ones are made
                self._kept = self._encode_all() if once else self._encode_block(block)
            rows.append(self._kept[row if once else sample])
        return Condition.cat(rows)

    def encode(self, prompts: list[str]) -> Condition:
        """The conditions of any prompts, a row each, on the CPU; ``""`` is the null condition."""
        return Condition.cat(self._encoded(prompts))

    def _encode_all(self) -> dict[int, Condition]:
        count, processes = len(self.prompts), self.processes
        groups = self._encoded([self.prompts[row] for row in processes.share(count)])
        if processes.count > 1:
            mine = Condition.cat(groups).tensors.items()
            groups = [Condition({name: processes.gather(t, count) for name, t in mine})]
        return dict(enumerate(_rows(groups)))

    def _encode_block(self, block: int) -> dict[int, Condition]:
        start, rank, count = block * self.in_memory, self.processes.rank, self.processes.count
        samples = range(start, start + self.in_memory)
        mine = [sample for sample in samples if sample // self.share % count == rank]
        order = rows_at(start, self.in_memory, len(self.prompts), self.seed).tolist()
        groups = self._encoded([self.prompts[order[sample - start]] for sample in mine])
        return dict(zip(mine, _rows(groups), strict=True))

    def _encoded(self, prompts: list[str]) -> list[Condition]:
        starts = range(0, len(prompts), _ENCODED_TOGETHER)
        parts = self.adapter.networks.items()
        encoders = [part for name, part in parts if name.startswith("text_encoder")]
        with moved(encoders, self.processes.device):  # training needs its memory for other things
            return [
                self.adapter.encode(prompts[start : start + _ENCODED_TOGETHER]).to("cpu")
                for start in starts
            ]


def _rows(groups: list[Condition]) -> list[Condition]:
    return [group[i : i + 1] for group in groups for i in range(len(group))]


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
