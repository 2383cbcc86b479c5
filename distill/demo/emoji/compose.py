"""Draw at random what a picture shows, together with its caption."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.demo.emoji.vocabulary import (
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
_SIZES, _POSITIONS, _RELATIONS = tuple(SIZES), tuple(POSITIONS), tuple(RELATIONS)


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

    def one_of(words: Sequence[str]) -> str:
        return words[rng.integers(len(words))]

    while True:
        place = one_of(BACKGROUNDS)
        if rng.random() < pairs:
            first, second = rng.choice(subjects, 2, replace=False).tolist()
            drawn = pair(first, one_of(_RELATIONS), second, place)
        else:
            size, position = one_of(_SIZES), one_of(_POSITIONS)
            drawn = single(int(rng.integers(subjects)), size, position, place)
        if drawn.held_out == held_out:
            return drawn
