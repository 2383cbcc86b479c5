"""The averaged student against the guided teacher, and when a student has collapsed."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from distill.files import read_tensors, write_tensors
from distill.frechet import patch_distance
from distill.preview import FixedSamples, pictures_of
from distill.trainer import Trainer

_TEACHER = "teacher-samples.safetensors"
# How far pictures may be from the teacher's: brightness is in [0, 1], the others are ratios.
_BRIGHTNESS = 0.25
_RATIO = 3.0


class Evaluation:
    """Compares samples of the same prompts and seeds, update after update.

    The teacher's are made first, and kept in the run's folder for a continuation.

    Args:
        trainer: the run; all its processes evaluate together.
        folder: the run's.

    Raises:
        DistillError: the teacher's samples cannot be written.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer = trainer
        self.samples = FixedSamples(trainer, trainer.recipe.evaluation.pictures)
        self.teacher = self._teacher(folder / _TEACHER)
        self.expected = _levels(trainer, self.teacher)

    def teacher_pictures(self) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        return pictures_of(self.trainer, self.teacher)

    def student(self) -> tuple[dict[str, float], str | None]:
        """Sample the averaged student.

        Returns:
            ``distance`` (``patch_distance`` in latents, 0 is best), ``brightness`` and
            ``contrast`` (mean and standard deviation of the pictures in [0, 1]), ``sample_mean``
            and ``sample_std`` (of the latents); and what is wrong, if these are no pictures.
        """
        latents = self.samples.student(self.trainer.recipe.steps)
        if not bool(latents.isfinite().all()):
            return {}, "its samples are not finite"
        levels = _levels(self.trainer, latents)
        distance = patch_distance(latents, self.teacher)
        return {"distance": distance, **levels}, collapse(levels, self.expected)

    def _teacher(self, path: Path) -> Tensor:
        recipe, adapter = self.trainer.recipe, self.trainer.adapter
        made_of = json.dumps(
            {
                "teacher": _weights(recipe.teacher),
                "size": [recipe.height, recipe.width, adapter.max_sequence_length],
                "evaluation": [recipe.evaluation.teacher_steps, recipe.evaluation.guidance],
                "prompts": self.samples.prompts,
            }
        )
        kept, processes = read_tensors(path, made_of), self.trainer.processes
        # All sample or none does: their networks may be sharded.
        if not processes.any(kept is None) and kept is not None:
            return kept["latents"]
        evaluation = recipe.evaluation
        latents = self.samples.teacher(evaluation.teacher_steps, evaluation.guidance)
        with processes.together():
            if processes.main:
                write_tensors(path, {"latents": latents}, made_of)
        return latents


def collapse(levels: dict[str, float], expected: dict[str, float]) -> str | None:
    """What is wrong with samples of these levels, in words; None where nothing is.

    The limits are wide: a fresh student's soft pictures pass, black, white, grey and burnt ones do
    not.
    """
    if not abs(levels["brightness"] - expected["brightness"]) <= _BRIGHTNESS:
        name, allowed = "brightness", f"at most {_BRIGHTNESS} away"
    elif not 1 / _RATIO <= levels["contrast"] / expected["contrast"] <= _RATIO:
        name, allowed = "contrast", f"within a factor of {_RATIO:g}"
    elif not 1 / _RATIO <= levels["sample_std"] / expected["sample_std"] <= _RATIO:
        name, allowed = "sample_std", f"within a factor of {_RATIO:g}"
    else:
        return None
    return f"{name} is {levels[name]:.3g}, the teacher's {expected[name]:.3g} ({allowed} is sound)"


def _levels(trainer: Trainer, latents: Tensor) -> dict[str, float]:
    pictures = pictures_of(trainer, latents)
    return {
        "brightness": pictures.mean().item(),
        "contrast": pictures.std().item(),
        "sample_mean": latents.mean().item(),
        "sample_std": latents.std().item(),
    }


def _weights(teacher: str) -> list[object]:
    """What changes when a folder's weights do; of a hub name nothing is known but the name."""
    files = sorted((Path(teacher) / "transformer").glob("*.safetensors"))
    return [teacher, *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]
