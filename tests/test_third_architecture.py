"""An architecture that this house does not know, added by a registry line, the whole way.

Its condition has a name of its own, its VAE no shift, its pipeline no default size.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from auraflow import REGISTRY_LINE
from conftest import Server
from diffusers import AuraFlowPipeline
from PIL import Image
from pipelines import PROMPTS, tiny_auraflow

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


@pytest.mark.slow
def test_from_teacher_to_picture(
    tmp_path: Path, start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "AuraFlowPipeline", REGISTRY_LINE)
    tiny_auraflow(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path))
    assert distill([str(tmp_path / "recipe.toml"), "--run", str(tmp_path / "run")]) == 0
    repository = tmp_path / "model_repository"
    options = ["--to", "onnx", "--max-batch", "2", "--out", str(repository)]
    assert export([str(tmp_path / "student"), *options]) == 0

    server = start("--model-repository", str(repository))
    server.wait_ready()
    served = tmp_path / "served.png"
    served.write_bytes(server.picture(PROMPTS[0], seed=7, steps=4, size="72x56"))
    assert server.interrupt() == 0

    pipeline = AuraFlowPipeline.from_pretrained(tmp_path / "student", dtype=torch.float32)
    reference = pipeline(
        PROMPTS[0],
        height=56,
        width=72,
        num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=20,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    difference = np.asarray(Image.open(served), float) - np.asarray(reference, float)
    # bfloat16 arithmetic, where the CPU has it, costs a few grey levels; another picture, 10 dB.
    assert 10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9)) > 35
