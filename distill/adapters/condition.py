"""What a transformer is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Named tensors (B, ...), one row a prompt; the names are those of the exported graphs."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Tensor | slice) -> Condition:
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> Condition:
        """The same rows on another device."""
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def expand(self, rows: int) -> Condition:
        """Repeat a single row, without copying it."""
        return Condition({name: t.expand(rows, *t.shape[1:]) for name, t in self.tensors.items()})

    @staticmethod
    def cat(conditions: list[Condition]) -> Condition:
        """Stack the rows of several conditions of one architecture."""
        names = conditions[0].tensors
        return Condition({name: torch.cat([c.tensors[name] for c in conditions]) for name in names})
