"""Rotary positions as complex numbers, of which ONNX knows next to nothing."""

from __future__ import annotations

import torch
from torch import Tensor


class Turns:
    """Complex numbers as pairs, up to where diffusers multiplies by them.

    Args:
        pairs: real and imaginary parts, (..., 2).
    """

    def __init__(self, pairs: Tensor) -> None:
        self.pairs = pairs

    def unsqueeze(self, axis: int) -> Tensor:
        """The complex numbers with one more axis, of those in front."""
        return torch.view_as_complex(self.pairs.unsqueeze(axis))

    def unflatten(self, axis: int, sizes: tuple[int, ...]) -> Turns:
        """One of the axes in front as several."""
        return Turns(torch.unflatten(self.pairs, axis, sizes))

    def __getitem__(self, index: tuple[slice, ...]) -> Turns:
        """A part, of the axes in front."""
        return Turns(self.pairs[index])
