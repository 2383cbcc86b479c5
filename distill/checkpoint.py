"""Checkpoints: one file each, whole or absent, the newest few kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError
from distill.files import whole_file

# What may differ between a run and its continuation; anything else would change its meaning.
_MAY_CHANGE = ("updates", "output", "optimiser", "log", "runtime")


def save(
    folder: Path, state: dict[str, Any], recipe: dict[str, Any], prompts: str, keep: int
) -> Path:
    """Write ``checkpoint-<updates>.pt`` and drop all but the ``keep`` newest.

    Args:
        folder: the run's.
        state: ``Trainer.state_dict()``.
        recipe: the resolved recipe as nested dicts.
        prompts: a hash of the prompts.
        keep: at least 1.

    Raises:
        DistillError: it cannot be written; nothing half-written stays and none was dropped.
    """
    path = folder / f"checkpoint-{state['updates']:08d}.pt"
    with whole_file(path) as temporary:
        torch.save({"state": state, "recipe": recipe, "prompts": prompts}, temporary)
    for old in found(folder)[:-keep]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The folder's checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"))


def load(path: Path, recipe: dict[str, Any], prompts: str) -> dict[str, Any]:
    """The state in a checkpoint of the same recipe and prompts.

    Raises:
        DistillError: damaged, or from a run that this recipe does not continue.
    """
    try:
        # Mapped, so that a checkpoint needs no second copy of itself in memory.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state, then = saved["state"], saved["recipe"]
        same_prompts = saved["prompts"] == prompts
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise DistillError(f"checkpoint {path} is damaged: {error}; delete it") from error
    if not same_prompts:
        raise DistillError(f"the prompts are not those of {path}; start a new --run folder")
    for key, value in recipe.items():
        if key not in _MAY_CHANGE and then.get(key) != value:
            raise DistillError(
                f"recipe key {key} was {then.get(key)!r} in {path} and is now {value!r}; only "
                f"{', '.join(_MAY_CHANGE)} may change: start a new --run folder"
            )
    checked: dict[str, Any] = state
    return checked
