"""An architecture that this house does not know, added by a registry line, the whole way.

Its condition has a name of its own, its VAE no shift, its pipeline no default size.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from auraflow import REGISTRY_LINE
from conftest import Server
from diffusers import AuraFlowPipeline
from PIL import Image
from pipelines import PROMPTS, tiny_auraflow

from distill.adapters import load_adapter, load_skeleton
from distill.adapters.registry import ARCHITECTURES
from distill.cli import main as distill
from export.cli import main as export

RECIPE = """
teacher = "{folder}/teacher"
output = "{folder}/student"
prompts = "{folder}/prompts.txt"
height = 56
width = 72
max_sequence_length = 20
steps = 4
updates = 1
batch = 2
[schedule]
n_max = 3
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_auraflow(tmp_path_factory.mktemp("third") / "teacher")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "AuraFlowPipeline", REGISTRY_LINE)


def test_the_adapter_samples_as_the_pipeline_does(teacher: Path) -> None:
    adapter = load_adapter(str(teacher), max_sequence_length=20)
    condition = adapter.encode([PROMPTS[0]])
    empty = load_skeleton(str(teacher), 20).empty_condition(1)
    assert {n: t.shape for n, t in empty.tensors.items()} == {
        n: t.shape for n, t in condition.tensors.items()
    }
    generator = torch.Generator().manual_seed(7)
    shape = adapter.latent_shape(56, 72)
    x = torch.randn(1, *shape, generator=generator)
    sigmas = adapter.sigmas(4, 56, 72)
    with torch.no_grad():
        for here, there in pairwise(sigmas):
            level = torch.full((1,), here)
            x = x + (there - here) * adapter.velocity(adapter.transformer, x, level, condition)
    picture = (adapter.decode(x)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    expected = adapter.picture(PROMPTS[0], 4, 56, 72, torch.Generator().manual_seed(7))
    assert psnr(255 * picture.numpy(), expected) > 50
    encoded = adapter.encode_pictures(adapter.decode(x))
    assert encoded.shape == (1, *shape)


def test_from_teacher_to_picture(
    teacher: Path, tmp_path: Path, start: Callable[..., Server]
) -> None:
    folder = teacher.parent
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    assert distill([str(folder / "recipe.toml"), "--run", str(folder / "run")]) == 0
    repository = tmp_path / "model_repository"
    options = ["--to", "onnx", "--max-batch", "2", "--out", str(repository)]
    assert export([str(folder / "student"), *options]) == 0

    server = start("--model-repository", str(repository))
    server.wait_ready()
    served = tmp_path / "served.png"
    served.write_bytes(server.picture(PROMPTS[0], seed=7, steps=4, size="72x56"))
    assert server.interrupt() == 0

    pipeline = AuraFlowPipeline.from_pretrained(folder / "student", dtype=torch.float32)
    reference = pipeline(
        PROMPTS[0],
        height=56,
        width=72,
        num_inference_steps=4,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=20,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert psnr(np.asarray(Image.open(served)), reference) > 35


def psnr(picture: np.ndarray, expected: object) -> float:
    difference = picture.astype(float) - np.asarray(expected, dtype=float)
    return 10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9))
