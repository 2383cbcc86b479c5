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
