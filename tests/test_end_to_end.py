"""The whole path: teacher, distillation, export, Triton, gateway, OpenAI's client, one picture."""

import base64
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from openai import OpenAI
from PIL import Image
from pipelines import PROMPTS, tiny_sd3

ROOT = Path(__file__).parents[1]
SIGMAS = [1.0, 0.75, 0.5, 0.25]
RECIPE = """
teacher = "{folder}/teacher"
output = "{folder}/student"
prompts = "{folder}/prompts.txt"
height = 64
width = 64
max_sequence_length = 0
steps = 4
updates = 2
batch = 2
[schedule]
n_max = 3
"""


def command(*words: object, cwd: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that cdm-distill made of a random teacher in two updates."""
    folder = tmp_path_factory.mktemp("end_to_end")
    tiny_sd3(folder / "teacher")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    command("distill", folder / "recipe.toml", "--run", folder / "run", cwd=folder)
    return folder / "student"


def test_from_teacher_to_picture(
    distilled: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    repository = tmp_path / "model_repository"
    command("export.cli", distilled, "--to", "onnx", "--out", repository, cwd=tmp_path)

    server = start("--model-repository", str(repository))
    server.wait_ready()
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.images.generate(prompt=PROMPTS[0], extra_body={"seed": 7})
    again = client.images.generate(prompt=PROMPTS[0], extra_body={"seed": 7})
    other = client.images.generate(prompt=PROMPTS[0], extra_body={"seed": 8})
    assert server.interrupt() == 0
    assert answer.data and again.data and other.data
    assert answer.data[0].b64_json == again.data[0].b64_json != other.data[0].b64_json
    served = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))))

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        distilled, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    reference = pipeline(
        PROMPTS[0],
        num_inference_steps=4,
        sigmas=SIGMAS,
        guidance_scale=1.0,
        max_sequence_length=0,
        generator=torch.Generator().manual_seed(7),
        height=64,
        width=64,
    ).images[0]
    difference = served.astype(float) - np.asarray(reference, dtype=float)
    psnr = 10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9))
    # bfloat16 arithmetic, where the CPU has it, costs a few grey levels; another picture, 10 dB.
    assert psnr > 35
