"""A whole distillation of every further architecture with a null condition, by the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import PROMPTS
from safetensors.torch import load_file
from students import FAMILIES

from distill.adapters import load_adapter
from distill.cli import main

LATER = ("sd3.5", "flux", "flux-dev", "z-image")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LATER]


@pytest.mark.parametrize("name", ["longcat", "qwen-image", *SLOW])
def test_two_updates_give_a_student_that_diffusers_samples(tmp_path: Path, name: str) -> None:
    make, described = FAMILIES[name]
    teacher, student = make(tmp_path / "teacher"), tmp_path / "student"
    length = described.get("max_sequence_length", 40)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        teacher = "{teacher}"
        output = "{student}"
        prompts = "{tmp_path / "prompts.txt"}"
        height = 40
        width = 64
        max_sequence_length = {length}
        updates = 2
        batch = 4
        [schedule]
        n_max = 3
        [log]
        preview_every = 2
        [evaluation]
        every = 2
        pictures = 2
        teacher_steps = 2
        [optimiser]
        warmup = 0
        student_rate = 1e-3
        [runtime]
        device = "cpu"
        precision = "bf16"
        threads = 1
        gradient_checkpointing = true
        """
    )
    assert main([str(recipe), "--run", str(tmp_path / "run")]) == 0

    card = json.loads((student / "cdm.json").read_text())
    assert card["architecture"] == described.get("architecture", "sd3")
    assert card["max_sequence_length"] == length
    assert card["guidance_scale"] == described.get("guidance_scale", 1.0)
    before, after = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (teacher, student)
    )
    changed = [
        name for name, weight in before.items() if not torch.equal(weight.bfloat16(), after[name])
    ]
    assert len(changed) > len(before) / 2

    again = load_adapter(str(student), max_sequence_length=length)
    assert {weight.dtype for weight in after.values()} == {again.half}
    picture = again.picture("a fox", 4, 40, 64, torch.Generator().manual_seed(0))
    assert picture.size == (64, 40) and np.asarray(picture).std() > 5
