"""The result: a diffusers folder in float16 with ``cdm.json``, which the exporter reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.adapters import load_adapter
from distill.adapters.loading import pipeline_folder
from distill.files import whole_folder
from distill.recipe import Recipe

_PACKAGES = ("cdm-serve", "torch", "diffusers", "transformers")


def save_student(network: nn.Module, recipe: Recipe, updates: int) -> Path:
    """Write the teacher's pipeline with ``network`` as its transformer to ``recipe.output``.

    Args:
        network: of the transformer's architecture; the averaged student.
        recipe: the run.
        updates: student updates made.

    Raises:
        DistillError: the teacher is gone or the folder cannot be written; an older student stays.
    """
    adapter = load_adapter(recipe.teacher, torch.float16, recipe.max_sequence_length)
    adapter.transformer.load_state_dict(network.state_dict())  # rounds into float16
    output = Path(recipe.output)
    with whole_folder(output) as folder:
        adapter.pipeline.save_pretrained(folder)
        description = json.dumps(describe(recipe, updates, adapter.name), indent=2)
        (folder / "cdm.json").write_text(description + "\n", encoding="utf-8")
    return output


def describe(recipe: Recipe, updates: int, architecture: str) -> dict[str, Any]:
    """What ``cdm.json`` says: how to sample the student, and where it comes from."""
    return {
        "format": 1,
        "name": Path(recipe.output).name,
        "architecture": architecture,
        "steps": recipe.steps,
        "sigmas": [1.0 - i / recipe.steps for i in range(recipe.steps)],
        "guidance_scale": 1.0,
        "max_sequence_length": recipe.max_sequence_length,
        "height": recipe.height,
        "width": recipe.width,
        "teacher": {
            "source": recipe.teacher,
            "sha256": transformer_sha256(pipeline_folder(recipe.teacher)),
        },
        "recipe": asdict(recipe),
        "updates": updates,
        "versions": {package: version(package) for package in _PACKAGES},
    }


def transformer_sha256(folder: Path) -> str:
    """The hash of a pipeline's transformer weights, its files one after the other by name."""
    digest = hashlib.sha256()
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        with path.open("rb") as weights:
            while block := weights.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
