"""The loop: log, previews, evaluation, checkpoints, and stopping when something has gone wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill import checkpoint
from distill.errors import DistillError
from distill.log import RunLog
from distill.recipe import EvaluationRecipe, LogRecipe, OptimiserRecipe, Recipe
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


@pytest.fixture
def evaluating(make: Callable[..., Trainer], recipe: Recipe) -> Callable[..., Trainer]:
    """A trainer that moves far with each update and is evaluated after every second one."""

    def trainer(updates: int = 6, student_rate: float = 3e-3) -> Trainer:
        plan = replace(
            recipe,
            updates=updates,
            log=LogRecipe(log_every=1, preview_every=0, checkpoint_every=2, keep=1),
            evaluation=EvaluationRecipe(every=2, pictures=3, teacher_steps=3),
            optimiser=OptimiserRecipe(student_rate=student_rate, warmup=0),
        )
        made: Trainer = make(plan)
        return made

    return trainer


def distances(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["update"]: line["distance"] for line in lines if "distance" in line}


def test_what_a_run_leaves(logging, tmp_path: Path) -> None:
    trainer = logging(log_every=2, checkpoint_every=2, keep=2, preview_every=4, preview_pictures=2)
    seen = run(trainer, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".txt")
    assert names == [
        "checkpoint-00000004",
        "checkpoint-00000005",
        "log.jsonl",
        *(f"preview-{steps}-00000004.png" for steps in (1, 2, 4, 8)),
        "tensorboard",
    ]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == seen
    assert [line["update"] for line in lines] == [2, 4, 5]
    keys = {"fake", "ca", "dm", "cdm", "gap", "latent_mean", "latent_std", "samples_per_second"}
    assert all(keys <= set(line) for line in lines)


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


def test_the_best_by_evaluation_is_kept_beside_the_newest(evaluating, tmp_path: Path) -> None:
    run(evaluating(), tmp_path)
    found = distances(tmp_path)
    assert list(found) == [0, 2, 4, 6]  # 0: where the student started
    del found[0]
    best = min(found, key=found.get)
    assert checkpoint.best_of(tmp_path) == tmp_path / f"checkpoint-{best:08d}"
    kept = {path.name for path in checkpoint.found(tmp_path)}
    assert kept == {f"checkpoint-{best:08d}", "checkpoint-00000006"}
    assert (tmp_path / "teacher-00000000.png").exists()
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert {"teacher_brightness", "teacher_contrast", "teacher_sample_std"} <= set(first)


def test_a_continued_run_knows_the_best_so_far(evaluating, tmp_path: Path) -> None:
    run(evaluating(), tmp_path / "straight")
    run(evaluating(), tmp_path / "resumed", stop_after=4)
    resumed = evaluating()
    checkpoint.load(checkpoint.found(tmp_path / "resumed")[-1], resumed)
    run(resumed, tmp_path / "resumed")
    assert distances(tmp_path / "resumed") == distances(tmp_path / "straight")
    assert (
        checkpoint.best_of(tmp_path / "resumed").name
        == checkpoint.best_of(tmp_path / "straight").name
    )


def test_the_last_update_is_evaluated_too(evaluating, tmp_path: Path) -> None:
    run(evaluating(updates=3), tmp_path)
    assert list(distances(tmp_path)) == [0, 2, 3]


def test_collapse_stops_before_the_checkpoint_and_names_the_best(
    evaluating, tmp_path: Path
) -> None:
    trainer = evaluating()
    healthy = trainer.update

    def ruined() -> dict[str, torch.Tensor]:
        metrics = healthy()
        if trainer.updates == 4:  # the losses above are finite, and so are these weights
            for value in trainer.average.values.values():
                value.mul_(30.0)
        return metrics

    trainer.update = ruined
    with pytest.raises(DistillError) as caught:
        run(trainer, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("update 4: the student collapsed: ")
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-00000002'}" in message
    assert "--set optimiser.student_rate" in message and "loss.alpha" in message
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-00000002"]


def test_nan_before_any_checkpoint_says_so(logging, tmp_path: Path) -> None:
    trainer = logging(log_every=3, checkpoint_every=3)
    with torch.no_grad():
        next(trainer.fake.parameters()).fill_(float("inf"))
    with pytest.raises(DistillError, match=r"update 1: fake is nan; .* no good checkpoint yet"):
        run(trainer, tmp_path)
    assert checkpoint.found(tmp_path) == []
