"""Compose many pictures at once, on any device, from tensors that hold every sprite and scene.

Nothing is read back from the device, so a training on a GPU never waits for its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from distill.demo.emoji.backgrounds import background
from distill.demo.emoji.compose import BACKGROUNDS, CANVAS, Composition, Placed
from distill.demo.emoji.sprites import sprite
from distill.demo.emoji.vocabulary import COLORS, PAIR_SIZE, SIZES, SUBJECTS

_CPU = torch.device("cpu")
_MARGIN = 2
_JITTER = 1
# Drawings of a scene to choose from; stars and waves differ from one to the next.
_VARIANTS = 64
_SPRITE_SIZES = tuple(sorted({*SIZES.values(), PAIR_SIZE}))
# The largest sprite in a frame of one transparent pixel: what is read beside it is transparent.
_CELL = max(_SPRITE_SIZES) + 2
_NO_SPRITE = len(_SPRITE_SIZES) * len(SUBJECTS)


def _layout(composition: Composition) -> list[int]:
    """The background's number, two sprites', and left and top of each in pixels."""
    stands = [*map(_stand, composition.placed), (_NO_SPRITE, 0, 0)][:2]
    (a, *corner_a), (b, *corner_b) = stands
    return [BACKGROUNDS.index(composition.background), a, b, *corner_a, *corner_b]


def _stand(placed: Placed) -> tuple[int, int, int]:
    middle = (CANVAS - placed.size) // 2
    x, y = (middle + (middle - _MARGIN) * direction for direction in placed.direction)
    return _SPRITE_SIZES.index(placed.size) * len(SUBJECTS) + placed.subject, x, y


@cache
def _sprites(device: torch.device) -> Tensor:
    """Every subject at every size and an empty cell, ``(N, cell, cell, 4)`` float32."""
    atlas = torch.zeros(_NO_SPRITE + 1, _CELL, _CELL, 4)
    for row, size in enumerate(_SPRITE_SIZES):
        for subject in range(len(SUBJECTS)):
            inside = torch.from_numpy(sprite(subject, size))
            atlas[row * len(SUBJECTS) + subject, 1 : size + 1, 1 : size + 1] = inside
    return atlas.to(device)


@cache
def _drawings(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Backgrounds ``(N, 64, 64, 3)`` float32; each one's first drawing and number of drawings."""
    rng = np.random.default_rng(0)
    counts = [1 if name in COLORS else _VARIANTS for name in BACKGROUNDS]
    drawn = [
        background(name, CANVAS, rng)
        for name, count in zip(BACKGROUNDS, counts, strict=True)
        for _ in range(count)
    ]
    numbers = torch.tensor(counts, device=device)
    return torch.from_numpy(np.stack(drawn)).to(device), numbers.cumsum(0) - numbers, numbers


class PicturePool:
    """Compositions drawn once, and composed anew whenever they are asked for."""

    def __init__(self, compositions: Sequence[Composition], device: torch.device = _CPU) -> None:
        self.device = device
        self._layouts = torch.tensor([*map(_layout, compositions)], device=device)

    def __len__(self) -> int:
        return len(self._layouts)

    def at(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw pictures ``(B, 3, 64, 64)`` in [0, 1], in the 256 levels that a file has.

        Args:
            rows: ``(B,)``, which compositions.
            generator: on the pool's device; it draws what captions leave open: which drawing of a
                scene, and where exactly within a pixel or so.
        """
        layout, device = self._layouts[rows], self.device
        count, place = len(layout), layout[:, 0]
        drawn, first, numbers = _drawings(device)
        chosen = torch.rand(count, generator=generator, device=device)
        canvas = drawn[first[place] + (chosen * numbers[place]).long()]
        shape = (count, 2, 2)
        jitter = torch.randint(-_JITTER, _JITTER + 1, shape, generator=generator, device=device)
        frame = layout[:, 3:].reshape(shape) + jitter - 1
        pixels = torch.arange(CANVAS, device=device)
        for layer in range(2):
            columns, lines = (
                (pixels - frame[:, layer, axis, None]).clamp(0, _CELL - 1) for axis in range(2)
            )
            index = layout[:, 1 + layer, None, None]
            sprites = _sprites(device)[index, lines[:, :, None], columns[:, None, :]]
            canvas = canvas * (1 - sprites[..., 3:]) + sprites[..., :3]
        # Lanczos resizing overshoots a little, so the sum may pass 1.
        return canvas.clamp(0, 1).mul(255).round().div(255).permute(0, 3, 1, 2)


def drawn(compositions: Sequence[Composition], seed: int) -> Tensor:
    """Draw one picture of each composition on the CPU, ``(B, 3, 64, 64)`` in [0, 1]."""
    rows = torch.arange(len(compositions))
    return PicturePool(compositions).at(rows, torch.Generator().manual_seed(seed))
