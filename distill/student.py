"""The result: a diffusers folder, two bytes a weight, with ``cdm.json``, which export reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from distill.adapters import Adapter, load_adapter
from distill.adapters.loading import pipeline_folder
from distill.files import whole_folder
from distill.networks import add_lora, merge_lora
from distill.recipe import Recipe
from distill.stock import write_stock
from distill.trainer import Trainer

_PACKAGES = ("cdm-serve", "torch", "diffusers", "transformers")


def save_student(trainer: Trainer) -> Path:
    """Write the teacher's pipeline with the averaged student as its transformer.

    Adapters are merged into the weights, slices of sharded weights are gathered. Every process of
    the training calls this, the main one writes to the recipe's ``output``.

    Raises:
        DistillError: the teacher is gone or the folder cannot be written; an older student stays.
    """
    recipe = trainer.recipe
    output = Path(recipe.output)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    adapter = load_adapter(recipe.teacher, trainer.adapter.half, recipe.max_sequence_length)
    if recipe.lora.rank:
        add_lora(adapter.transformer, recipe.lora, recipe.seed)
    with trainer.averaged():  # what is gathered may be the network's own memory
        weights = get_model_state_dict(trainer.student, options=options)
        if trainer.processes.main:
            adapter.transformer.load_state_dict(weights, strict=False)  # rounds
    if trainer.processes.main:
        if recipe.lora.rank:
            merge_lora(adapter.transformer)
        with whole_folder(output) as folder:
            adapter.pipeline.save_pretrained(folder)
            write_stock(adapter, recipe.steps, recipe.height, recipe.width, folder)
            description = json.dumps(describe(recipe, trainer.updates, adapter), indent=2)
            (folder / "cdm.json").write_text(description + "\n", encoding="utf-8")
    trainer.processes.wait()
    return output


def describe(recipe: Recipe, updates: int, adapter: Adapter) -> dict[str, Any]:
    """What ``cdm.json`` says: how to sample the student, and where it comes from."""
    return {
        "format": 1,
        "name": Path(recipe.output).name,
        "architecture": adapter.name,
        "steps": recipe.steps,
        "sigmas": [1.0 - i / recipe.steps for i in range(recipe.steps)],
        "shift": adapter.pipeline.scheduler.config.shift,  # what the sigmas are to be shifted by
        "guidance_scale": adapter.guidance_scale,
        "max_sequence_length": adapter.max_sequence_length,
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
