"""A whole distillation of the second architecture, through the command."""

import json
from pathlib import Path

import torch
from diffusers import LongCatImagePipeline
from pipelines import PROMPTS, tiny_longcat
from safetensors.torch import load_file

from distill.adapters import load_adapter
from distill.cli import main


def test_two_updates_give_a_student_that_diffusers_samples(tmp_path: Path) -> None:
    teacher, student = tiny_longcat(tmp_path / "teacher"), tmp_path / "student"
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = tmp_path / "longcat.toml"
    recipe.write_text(
        f"""
        teacher = "{teacher}"
        output = "{student}"
        prompts = "{tmp_path / "prompts.txt"}"
        height = 40
        width = 64
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
    assert (card["architecture"], card["max_sequence_length"]) == ("longcat", 512)
    before, after = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (teacher, student)
    )
    changed = [
        name for name, weight in before.items() if not torch.equal(weight.bfloat16(), after[name])
    ]
    assert len(changed) > len(before) / 2

    theirs = LongCatImagePipeline.from_pretrained(student, text_processor=None, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    picture = theirs(
        "a fox",
        height=40,
        width=64,
        num_inference_steps=4,
        sigmas=card["sigmas"],
        guidance_scale=1.0,
        enable_prompt_rewrite=False,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert picture.shape == (1, 3, 40, 64)
    assert picture.isfinite().all() and picture.std() > 0.05
    assert load_adapter(str(student)).name == "longcat"
