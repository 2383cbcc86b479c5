import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.demo.emoji.cli import main
from distill.demo.emoji.compose import (
    CANVAS,
    HELD_OUT_PART,
    Composition,
    draw_composition,
    pair,
    single,
)
from distill.demo.emoji.composer import PicturePool, drawn
from distill.demo.emoji.sprites import sprite
from distill.demo.emoji.vocabulary import COLORS, RELATIONS, SCENES, SIZES, SUBJECTS, with_article

WORDS = {name: index for index, (name, _) in enumerate(SUBJECTS)}


def picture_of(composition: Composition, seed: int = 0) -> np.ndarray:
    """Levels of 0 to 255, ``(64, 64, 3)``."""
    pixels = drawn([composition], seed)[0].permute(1, 2, 0).numpy()
    return (255 * pixels).round().astype(np.uint8)


def centre_of_change(picture: np.ndarray, color: tuple[int, int, int]) -> tuple[float, float]:
    """Middle of the box around the pixels that are not background, 0 to 1."""
    rows, columns = np.nonzero(np.abs(picture.astype(int) - color).sum(axis=-1) > 30)
    middle = [(places.min() + places.max() + 1) / 2 for places in (columns, rows)]
    return float(middle[0] / CANVAS), float(middle[1] / CANVAS)


def test_captions_read_as_people_write() -> None:
    assert single(WORDS["owl"], "", "on the left", "purple").caption == (
        "an owl on the left on a purple background"
    )
    assert single(WORDS["fox"], "small", "", "snow").caption == "a small fox in the snow"
    assert pair(WORDS["fox"], "above", WORDS["elephant"], "orange").caption == (
        "a fox above an elephant on an orange background"
    )
    assert with_article("unicorn") == "a unicorn"


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("", (0.5, 0.5)),
        ("on the left", (0.27, 0.5)),
        ("on the right", (0.73, 0.5)),
        ("at the top", (0.5, 0.27)),
        ("at the bottom", (0.5, 0.73)),
    ],
)
def test_the_subject_stands_where_the_caption_says(
    position: str, expected: tuple[float, float]
) -> None:
    composition = single(WORDS["heart"], "", position, "navy")
    found = centre_of_change(picture_of(composition), COLORS["navy"])
    assert found == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_pair_stands_in_its_relation(relation: str) -> None:
    """A red heart and a green frog tell the two apart by colour."""
    composition = pair(WORDS["heart"], relation, WORDS["frog"], "white")
    picture = picture_of(composition, 1).astype(int)
    red = np.argwhere((picture[..., 0] > 180) & (picture[..., 1] < 100)).mean(axis=0)
    green = np.argwhere((picture[..., 1] > 120) & (picture[..., 0] < 140)).mean(axis=0)
    x, y = RELATIONS[relation]
    assert (red[1] - green[1]) * x + (red[0] - green[0]) * y > 15


def test_a_picture_is_its_sprite_laid_over_its_colour() -> None:
    """Pixel by pixel, at one of the nine places that lie within a pixel of the caption's."""
    composition = single(WORDS["fox"], "large", "on the left", "teal")
    pixels = sprite(WORDS["fox"], 46)
    expected = []
    for x, y in product((1, 2, 3), (8, 9, 10)):
        canvas = np.full((CANVAS, CANVAS, 3), COLORS["teal"], dtype=np.float32) / 255
        area = canvas[y : y + 46, x : x + 46]
        area[:] = area * (1 - pixels[..., 3:]) + pixels[..., :3]
        expected.append((255 * canvas.clip(0, 1)).round().astype(np.uint8))
    for seed in range(6):
        picture = picture_of(composition, seed)
        assert any(np.array_equal(picture, other) for other in expected)


def test_a_pool_draws_its_rows_whatever_their_order() -> None:
    compositions = [single(WORDS["owl"], "", "", "red"), single(WORDS["owl"], "", "", "blue")]
    pool = PicturePool(compositions, torch.device("cpu"))
    pictures = pool.at(torch.tensor([1, 0, 1]), torch.Generator().manual_seed(0))
    found = [tuple((255 * picture[:, 0, 0]).round().int().tolist()) for picture in pictures]
    assert found == [COLORS["blue"], COLORS["red"], COLORS["blue"]]


@pytest.mark.parametrize("background", [*COLORS, *SCENES])
def test_large_sprites_stay_inside_the_canvas_and_the_corners_stay_background(
    background: str,
) -> None:
    picture = picture_of(single(WORDS["pizza"], "large", "on the right", background))
    assert picture.shape == (CANVAS, CANVAS, 3)
    if background in COLORS:
        assert tuple(picture[0, 0]) == COLORS[background]
    else:
        assert picture.std() > 5


def test_every_subject_has_a_sprite_with_an_outline() -> None:
    for index in range(len(SUBJECTS)):
        pixels = sprite(index, max(SIZES.values()))
        assert 0.1 < pixels[..., 3].mean() < 0.95
        # Premultiplied: no colour is brighter than its alpha, up to what resampling rounds.
        assert (pixels[..., :3] <= pixels[..., 3:] + 0.1).all()


def test_held_out_combinations_never_meet_training() -> None:
    rng = np.random.default_rng(3)
    trained = {draw_composition(rng, 48, 0.5).caption for _ in range(2000)}
    held = {draw_composition(rng, 48, 0.5, held_out=True).caption for _ in range(300)}
    assert not trained & held


def test_prompts_are_what_training_may_see(tmp_path: Path) -> None:
    out = tmp_path / "prompts.txt"
    assert main(["prompts", "--subjects", "5", "--count", "300", "--out", str(out)]) == 0
    captions = out.read_text().splitlines()
    assert len(set(captions)) == len(captions) == 300
    assert all(zlib.crc32(caption.encode()) % HELD_OUT_PART for caption in captions)
    words = " ".join(captions).split()
    assert {noun for noun, _ in SUBJECTS[:5]} <= set(words)
    assert not {noun for noun, _ in SUBJECTS[5:]} & set(words)
    pairs = sum(any(f" {relation} " in caption for relation in RELATIONS) for caption in captions)
    assert 90 < pairs < 150
