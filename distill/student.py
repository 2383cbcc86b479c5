"""The result: a diffusers folder, two bytes a weight, with ``cdm.json``, which export reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.adapters import Adapter
from distill.adapters.loading import pipeline_folder
from distill.files import whole_folder
from distill.networks import merged, moved, outline
from distill.recipe import Recipe
from distill.stock import write_stock
from distill.trainer import Trainer

_PACKAGES = ("cdm-serve", "torch", "diffusers", "transformers")


def save_student(trainer: Trainer) -> Path:
    """Write the teacher's pipeline with the averaged student as its transformer.

    Adapters are merged into the weights, slices of sharded weights are gathered. Every process of
    the training calls this, the main one writes to the recipe's ``output``; it alone holds the
    network, in two bytes a weight.

    Raises:
        DistillError: the folder cannot be written; an older student stays.
    """
    recipe, processes, half = trainer.recipe, trainer.processes, trainer.adapter.half
    output = Path(recipe.output)
    weights: dict[str, Tensor] = {}
    with trainer.averaged():
        for name, weight in merged(trainer.student):
            if processes.main:
                weights[name] = weight.to(half).cpu()
    with processes.together():
        if processes.main:
            with whole_folder(output) as folder:
                _write(trainer, weights, folder)
    return output


def _write(trainer: Trainer, weights: dict[str, Tensor], folder: Path) -> None:
    recipe, adapter = trainer.recipe, trainer.adapter
    network, teacher = outline(adapter.transformer), adapter.transformer
    network.load_state_dict(weights, assign=True)  # RuntimeError where a name is amiss
    others = [part for part in adapter.networks.values() if part is not teacher]
    # Past the pipeline's own setter, which would note an adapter's class for diffusers'.
    object.__setattr__(adapter.pipeline, "transformer", network)
    try:
        with moved(others, "cpu", adapter.half):
            adapter.pipeline.save_pretrained(folder)
    finally:
        object.__setattr__(adapter.pipeline, "transformer", teacher)
    write_stock(adapter, recipe.steps, recipe.height, recipe.width, folder)
    description = json.dumps(describe(recipe, trainer.updates, adapter), indent=2)
    (folder / "cdm.json").write_text(description + "\n", encoding="utf-8")


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
