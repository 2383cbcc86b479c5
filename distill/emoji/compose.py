"""Draw a random picture together with its caption."""

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.emoji.backgrounds import background
from distill.emoji.sprites import sprite
from distill.emoji.vocabulary import (
    COLORS,
    PAIR_SIZE,
    POSITIONS,
    RELATIONS,
    SCENES,
    SIZES,
    SUBJECTS,
    with_article,
)

CANVAS = 64
# One in so many combinations is never trained on: what is made of it was composed, not remembered.
HELD_OUT_PART = 20
BACKGROUNDS = (*COLORS, *SCENES)
_MARGIN = 2
_JITTER = 1


@dataclass(frozen=True)
class Placed:
    """A subject (index into the vocabulary), where its centre points (-1 to 1), and its size."""

    subject: int
    direction: tuple[int, int]
    size: int


@dataclass(frozen=True)
class Composition:
    """What a picture shows, and the caption that says so."""

    caption: str
    background: str
    placed: tuple[Placed, ...]

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept from training."""
        return zlib.crc32(self.caption.encode()) % HELD_OUT_PART == 0


def _background_phrase(name: str) -> str:
    return SCENES[name] if name in SCENES else f"on {with_article(name)} background"


def single(subject: int, size: str, position: str, background: str) -> Composition:
    """Compose one subject; the words are keys of the vocabulary's tables."""
    noun = SUBJECTS[subject][0]
    words = [with_article(f"{size} {noun}".strip()), position, _background_phrase(background)]
    placed = Placed(subject, POSITIONS[position], SIZES[size])
    return Composition(" ".join(word for word in words if word), background, (placed,))


def pair(first: int, relation: str, second: int, background: str) -> Composition:
    """Compose two subjects, the first ``relation`` the second."""
    x, y = RELATIONS[relation]
    nouns = [with_article(SUBJECTS[index][0]) for index in (first, second)]
    caption = f"{nouns[0]} {relation} {nouns[1]} {_background_phrase(background)}"
    placed = (Placed(first, (x, y), PAIR_SIZE), Placed(second, (-x, -y), PAIR_SIZE))
    return Composition(caption, background, placed)


def draw_composition(
    rng: np.random.Generator, subjects: int, pairs: float, held_out: bool = False
) -> Composition:
    """Draw a composition from the first ``subjects`` words; a share of ``pairs`` holds two."""
    while True:
        place = str(rng.choice(BACKGROUNDS))
        if rng.random() < pairs:
            first, second = rng.choice(subjects, 2, replace=False).tolist()
            drawn = pair(first, str(rng.choice(list(RELATIONS))), second, place)
        else:
            size, position = str(rng.choice(list(SIZES))), str(rng.choice(list(POSITIONS)))
            drawn = single(int(rng.integers(subjects)), size, position, place)
        if drawn.held_out == held_out:
            return drawn


def render(composition: Composition, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw the picture, ``(64, 64, 3)`` uint8; ``rng`` moves what the caption leaves open."""
    canvas = background(composition.background, CANVAS, rng)
    for placed in composition.placed:
        reach = (CANVAS - placed.size) // 2 - _MARGIN
        jitter = rng.integers(-_JITTER, _JITTER + 1, 2)
        left, top = (
            (CANVAS - placed.size) // 2 + reach * direction + int(shift)
            for direction, shift in zip(placed.direction, jitter, strict=True)
        )
        pixels = sprite(placed.subject, placed.size)
        area = canvas[top : top + placed.size, left : left + placed.size]
        area *= 1 - pixels[..., 3:]
        area += pixels[..., :3]
    # Lanczos resizing overshoots a little, so the sum may pass 1.
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)


def from_pixels(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Turn ``(B, 64, 64, 3)`` uint8 into ``(B, 3, 64, 64)`` float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
