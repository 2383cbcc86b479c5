"""The loop: log, checkpoints, previews, and stopping on a loss that is no number."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill import checkpoint
from distill.errors import DistillError
from distill.recipe import LogRecipe, Recipe
from distill.runlog import RunLog
from distill.trainer import Trainer
from distill.training import train


def run(trainer: Trainer, folder: Path, stop_after: int | None = None) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    train(
        trainer,
        folder,
        RunLog(folder, trainer.updates),
        seen.append,
        lambda: stop_after is not None and trainer.updates >= stop_after,
    )
    return seen


@pytest.fixture
def logging(make: Callable[..., Trainer], recipe: Recipe) -> Callable[..., Trainer]:
    def trainer(**log: int) -> Trainer:
        plan = replace(recipe, updates=5, log=replace(LogRecipe(preview_every=0), **log))
        made: Trainer = make(plan)
        return made

    return trainer


def test_what_a_run_leaves(logging, tmp_path: Path) -> None:
    trainer = logging(log_every=2, checkpoint_every=2, keep=2, preview_every=4, preview_pictures=2)
    seen = run(trainer, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".txt")
    assert names == [
        "checkpoint-00000004",
        "checkpoint-00000005",
        "log.jsonl",
        "preview-00000004.png",
    ]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == seen
    assert [line["update"] for line in lines] == [2, 4, 4, 5]
    preview = lines[2]
    assert 0 <= preview["brightness"] <= 1 and 0 < preview["contrast"] < 1
    keys = {"fake", "ca", "dm", "cdm", "latent_mean", "latent_std", "samples_per_second"}
    assert all(keys <= set(line) for line in lines if line is not preview)


def test_records_are_means_over_their_window(logging, tmp_path: Path) -> None:
    every = run(logging(log_every=1, checkpoint_every=0), tmp_path / "every")
    windows = run(logging(log_every=5, checkpoint_every=0), tmp_path / "windows")
    assert len(every) == 5 and len(windows) == 1
    mean = sum(record["ca"] for record in every) / 5
    assert windows[0]["ca"] == pytest.approx(mean, rel=1e-4)


def test_stopping_leaves_a_checkpoint_of_that_update(logging, tmp_path: Path) -> None:
    run(logging(checkpoint_every=0), tmp_path, stop_after=3)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-00000003"]


def test_nan_stops_with_the_last_good_checkpoint(logging, tmp_path: Path) -> None:
    trainer = logging(log_every=1, checkpoint_every=1)
    healthy = trainer.update

    def poisoned() -> dict[str, torch.Tensor]:
        if trainer.updates == 2:
            with torch.no_grad():
                next(trainer.student.parameters()).fill_(float("nan"))
        return healthy()

    trainer.update = poisoned
    with pytest.raises(DistillError, match=r"update 3: .* is nan.*checkpoint-00000002"):
        run(trainer, tmp_path)
    resumed = logging()
    checkpoint.load(checkpoint.found(tmp_path)[-1], resumed)
    assert resumed.updates == 2
    good = resumed.state_dict()["student"]
    assert all(torch.isfinite(weight).all() for weight in good.values())
