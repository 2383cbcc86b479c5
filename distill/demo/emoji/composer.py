"""Compose many pictures at once, on any device, from tensors that hold every sprite and scene.

Nothing is read back from the device, so a training on a GPU never waits for its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Layout:
    """What stands where in N pictures.

    background: ``(N,)`` index into ``BACKGROUNDS``. sprite: ``(N, 2)`` index into the atlas, the
    last one for nothing. corner: ``(N, 2, 2)`` left and top of each sprite, in pixels.
    """

    background: Tensor
    sprite: Tensor
    corner: Tensor

    def __len__(self) -> int:
        return len(self.background)

    def __getitem__(self, rows: Tensor) -> Layout:
        return Layout(self.background[rows], self.sprite[rows], self.corner[rows])

    def to(self, device: torch.device) -> Layout:
        """Return the layout on ``device``."""
        return Layout(*(part.to(device) for part in (self.background, self.sprite, self.corner)))


def layout_of(compositions: Sequence[Composition]) -> Layout:
    """Turn compositions into tensors on the CPU."""
    nothing = (_NO_SPRITE, (0, 0))
    pairs = [([_stand(placed) for placed in c.placed] + [nothing])[:2] for c in compositions]
    return Layout(
        torch.tensor([BACKGROUNDS.index(c.background) for c in compositions]),
        torch.tensor([[index for index, _ in both] for both in pairs]),
        torch.tensor([[corner for _, corner in both] for both in pairs]),
    )


def _stand(placed: Placed) -> tuple[int, tuple[int, int]]:
    middle = (CANVAS - placed.size) // 2
    x, y = (middle + (middle - _MARGIN) * direction for direction in placed.direction)
    return _SPRITE_SIZES.index(placed.size) * len(SUBJECTS) + placed.subject, (x, y)


@cache
def _sprites() -> Tensor:
    """Every subject at every size and an empty cell, ``(N, cell, cell, 4)`` float32."""
    atlas = torch.zeros(_NO_SPRITE + 1, _CELL, _CELL, 4)
    for row, size in enumerate(_SPRITE_SIZES):
        for subject in range(len(SUBJECTS)):
            inside = torch.from_numpy(sprite(subject, size))
            atlas[row * len(SUBJECTS) + subject, 1 : size + 1, 1 : size + 1] = inside
    return atlas


@cache
def _drawings() -> tuple[Tensor, Tensor, Tensor]:
    """Backgrounds ``(N, 64, 64, 3)`` float32; each one's first drawing and number of drawings."""
    rng = np.random.default_rng(0)
    counts = [1 if name in COLORS else _VARIANTS for name in BACKGROUNDS]
    drawn = [
        background(name, CANVAS, rng)
        for name, count in zip(BACKGROUNDS, counts, strict=True)
        for _ in range(count)
    ]
    numbers = torch.tensor(counts)
    return torch.from_numpy(np.stack(drawn)), numbers.cumsum(0) - numbers, numbers


class Composer:
    """Sprites and backgrounds on a device."""

    def __init__(self, device: torch.device = _CPU) -> None:
        self.device = device
        self._atlas = _sprites().to(self.device)
        self._drawn, self._first, self._count = (part.to(self.device) for part in _drawings())

    def compose(self, layout: Layout, generator: torch.Generator) -> Tensor:
        """Draw pictures ``(B, 3, 64, 64)`` in [0, 1], in the 256 levels that a file has.

        ``generator`` is on the composer's device; it draws what captions leave open: which drawing
        of a scene, and where exactly within a pixel or so.
        """
        count, device = len(layout), self.device
        chosen = torch.rand(count, generator=generator, device=device)
        drawing = (chosen * self._count[layout.background]).long()
        canvas = self._drawn[self._first[layout.background] + drawing]
        shape = (count, 2, 2)
        jitter = torch.randint(-_JITTER, _JITTER + 1, shape, generator=generator, device=device)
        frame = layout.corner + jitter - 1
        pixels = torch.arange(CANVAS, device=device)
        for layer in range(2):
            columns, rows = (
                (pixels - frame[:, layer, axis, None]).clamp(0, _CELL - 1) for axis in range(2)
            )
            index = layout.sprite[:, layer, None, None]
            drawn = self._atlas[index, rows[:, :, None], columns[:, None, :]]
            canvas = canvas * (1 - drawn[..., 3:]) + drawn[..., :3]
        # Lanczos resizing overshoots a little, so the sum may pass 1.
        return canvas.clamp(0, 1).mul(255).round().div(255).permute(0, 3, 1, 2)


class PicturePool:
    """Compositions drawn once, and composed anew whenever they are asked for."""

    def __init__(self, compositions: Sequence[Composition], device: torch.device) -> None:
        self.device = device
        self._layout = layout_of(compositions).to(device)
        self._composer = Composer(device)

    def __len__(self) -> int:
        return len(self._layout)

    def at(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Compose the pictures of ``rows`` ``(B,)``, ``(B, 3, 64, 64)`` in [0, 1]."""
        return self._composer.compose(self._layout[rows], generator)


def drawn(compositions: Sequence[Composition], seed: int) -> Tensor:
    """Draw one picture of each composition on the CPU, ``(B, 3, 64, 64)`` in [0, 1]."""
    return Composer().compose(layout_of(compositions), torch.Generator().manual_seed(seed))
