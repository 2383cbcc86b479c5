"""The models in the repository are whole, small, and draw what they are asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline

from distill.demo.emoji.compose import BACKGROUNDS
from distill.demo.emoji.judge import load_judge
from distill.demo.emoji.score import look
from distill.demo.emoji.tiny import decoder_psnr, held_out_latents
from distill.demo.emoji.vocabulary import COLORS, POSITIONS, SUBJECTS

MODELS = Path(__file__).parents[1] / "models"
# Subject, position, background: none of the subjects has the colour it stands on.
CASES = [
    ("fox", "on the left", "purple"),
    ("frog", "on the right", "white"),
    ("pizza", "at the top", "teal"),
    ("balloon", "at the bottom", "beige"),
    ("panda", "", "blue"),
    ("car", "on the right", "yellow"),
    ("heart", "on the left", "gray"),
    ("sunflower", "at the top", "navy"),
    ("penguin", "at the bottom", "pink"),
    ("castle", "on the left", "green"),
]


def caption(subject: str, position: str, background: str) -> str:
    return " ".join(f"a {subject} {position} on a {background} background".split())


@pytest.mark.parametrize("name", ["emoji-teacher", "emoji-student"])
def test_fits_in_forty_megabytes(name: str) -> None:
    files = [path for path in (MODELS / name).rglob("*") if path.is_file()]
    assert 10e6 < sum(path.stat().st_size for path in files) < 40e6


def test_the_student_says_how_it_is_sampled() -> None:
    card = json.loads((MODELS / "emoji-student" / "cdm.json").read_text())
    assert card["sigmas"] == [1.0, 0.75, 0.5, 0.25]
    assert (card["width"], card["height"], card["guidance_scale"]) == (64, 64, 1.0)


@pytest.mark.slow
def test_the_tiny_decoder_is_near_the_full_one(student: StableDiffusion3Pipeline) -> None:
    folder = MODELS / "emoji-tiny-decoder"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6
    tiny = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32)
    assert decoder_psnr(tiny, student.vae, held_out_latents(student.vae)[:64]) > 29


@pytest.fixture(scope="module")
def student() -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        MODELS / "emoji-student", text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_fox_becomes_a_panda_in_the_same_place(student: StableDiffusion3Pipeline) -> None:
    """As the engine makes edits, which is tested to be diffusers' own; 200 of them are slow."""
    options = {
        "num_inference_steps": 4,
        "sigmas": [1.0, 0.75, 0.5, 0.25],
        "guidance_scale": 1.0,
        "max_sequence_length": 0,
        "output_type": "pt",
    }
    seeds = [torch.Generator().manual_seed(seed) for seed in range(8)]
    foxes = student(["a fox in the snow"] * 8, generator=seeds, **options).images
    edit = StableDiffusion3Img2ImgPipeline(**student.components)
    edit.set_progress_bar_config(disable=True)
    prompts = ["a panda in the snow"] * 8
    pandas = edit(prompts, image=foxes, strength=0.75, generator=seeds, **options).images
    judge = load_judge(MODELS / "emoji-judge")
    found = [look(judge, pictures)[1] for pictures in (foxes, pandas)]
    subjects = [name for name, _ in SUBJECTS]
    assert (found[1][0].argmax(1) == BACKGROUNDS.index("snow")).all()
    assert (found[1][2].argmax(1) == subjects.index("panda")).sum() >= 7
    places = [each[1].argmax(1) % len(POSITIONS) for each in found]
    assert (places[0] == places[1]).sum() >= 7


def test_ten_prompts_have_their_background_and_position(student: StableDiffusion3Pipeline) -> None:
    pictures = student(
        [caption(*case) for case in CASES],
        num_inference_steps=4,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(CASES))],
        output_type="np",
    ).images
    for (_, position, background), picture in zip(CASES, 255 * pictures, strict=True):
        color = np.array(COLORS[background])
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert np.abs(np.median(corners, axis=0) - color).max() < 40, (background, corners)
        rows, columns = np.nonzero(np.abs(picture - color).sum(axis=-1) > 120)
        centre = np.array([columns.mean(), rows.mean()]) / 32 - 1
        # Half of the canvas is 1; a subject at a side has its centre about 0.4 away.
        expected = 0.4 * np.array(POSITIONS[position])
        assert np.abs(centre - expected).max() < 0.25, (position, background, centre)
