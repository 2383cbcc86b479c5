"""Checkpoints: kept, refused, damaged."""

import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill import checkpoint
from distill.errors import DistillError
from distill.recipe import LogRecipe, Recipe
from distill.trainer import Trainer

Make = Callable[..., Trainer]


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trainer.state_dict()["student"].values()])


def test_the_newest_and_the_best_are_kept(make: Make, recipe: Recipe, tmp_path: Path) -> None:
    folder, trainer = tmp_path / "run", make(recipe)
    paths = []
    for updates in (5, 50, 500, 5000):
        trainer.updates = updates
        paths.append(checkpoint.save(folder, trainer, keep=2, best=updates == 5))
    assert checkpoint.found(folder) == [paths[0], *paths[2:]]
    assert checkpoint.best_of(folder) == paths[0]
    checkpoint.save(folder, trainer, keep=1, best=True)
    assert checkpoint.found(folder) == [paths[-1]] == [checkpoint.best_of(folder)]
    assert not list(folder.glob(".*"))


def test_training_goes_on_bit_for_bit(make: Make, recipe: Recipe, tmp_path: Path) -> None:
    straight = make(recipe)
    straight.update()
    path = checkpoint.save(tmp_path / "run", straight, keep=1)
    straight.update()
    resumed = make(recipe)
    checkpoint.load(path, resumed)
    resumed.update()
    assert resumed.updates == 2
    assert torch.equal(weights(resumed), weights(straight))


def test_some_keys_may_change(make: Make, recipe: Recipe, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "run", make(recipe), keep=1)
    checkpoint.load(path, make(replace(recipe, updates=20, log=LogRecipe(keep=7))))
    with pytest.raises(DistillError, match=r"batch was 3 in .* and is now 4: start a new"):
        checkpoint.load(path, make(replace(recipe, batch=4)))
    with pytest.raises(DistillError, match="prompts' SHA-256 was"):
        checkpoint.load(path, make(recipe, ["another prompt"]))


@pytest.mark.parametrize("damaged", ["__0_0.distcp", ".metadata", "run.json"])
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_damage_is_one_clear_line(
    make: Make, recipe: Recipe, tmp_path: Path, damaged: str, how: str
) -> None:
    path = checkpoint.save(tmp_path / "run", make(recipe), keep=1)
    file = path / damaged
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with pytest.raises(DistillError, match="is damaged") as caught:
        checkpoint.load(path, make(recipe))
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_the_old_ones(make: Make, recipe: Recipe, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the write alike."""
    folder, trainer = tmp_path / "run", make(recipe)
    old = checkpoint.save(folder, trainer, keep=1)
    trainer.updates = 9
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DistillError, match=r"checkpoint-00000009 cannot be written") as caught:
            checkpoint.save(folder, trainer, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == [old]
    shutil.rmtree(folder)
