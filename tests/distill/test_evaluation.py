"""The evaluation's samples against diffusers' pipeline; kept samples; what counts as collapsed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import PROMPTS

from distill.adapters import Adapter
from distill.evaluation import Evaluation, collapse
from distill.recipe import EvaluationRecipe, Recipe
from distill.trainer import Trainer

SOUND = {"brightness": 0.5, "contrast": 0.25, "sample_mean": 0.0, "sample_std": 1.0}


@pytest.fixture
def plan(recipe: Recipe) -> Recipe:
    few = EvaluationRecipe(every=1, pictures=7, teacher_steps=6, guidance=4.5)
    return replace(recipe, evaluation=few)


def test_the_teachers_samples_are_the_guided_pipelines(
    make: Callable[..., Trainer], adapter: Adapter, plan: Recipe, tmp_path: Path
) -> None:
    """Seven samples of five prompts: the first two come again, with other seeds."""
    adapter.pipeline.set_progress_bar_config(disable=True)
    pictures = adapter.pipeline(
        [*PROMPTS, *PROMPTS[:2]],
        negative_prompt=[""] * 7,
        generator=[torch.Generator().manual_seed(seed) for seed in range(7)],
        num_inference_steps=6,
        sigmas=[1 - i / 6 for i in range(6)],
        guidance_scale=4.5,
        max_sequence_length=0,
        output_type="pt",
    ).images
    evaluation = Evaluation(make(plan), tmp_path)
    torch.testing.assert_close(evaluation.teacher_pictures(), pictures, rtol=0, atol=1e-5)
    assert evaluation.expected["brightness"] == pytest.approx(pictures.mean().item(), abs=1e-5)
    assert evaluation.expected["contrast"] == pytest.approx(pictures.std().item(), abs=1e-5)


def test_a_student_that_samples_as_the_teacher_does_is_at_zero(
    make: Callable[..., Trainer], plan: Recipe, tmp_path: Path
) -> None:
    unguided = replace(plan, evaluation=replace(plan.evaluation, teacher_steps=4, guidance=1.0))
    record, wrong = Evaluation(make(unguided), tmp_path).student()
    assert wrong is None
    assert record["distance"] < 1e-9
    assert set(record) == {"distance", "brightness", "contrast", "sample_mean", "sample_std"}


def test_it_is_the_average_that_is_compared(
    make: Callable[..., Trainer], plan: Recipe, tmp_path: Path
) -> None:
    trainer = make(plan)
    evaluation = Evaluation(trainer, tmp_path)
    before = evaluation.student()
    with torch.no_grad():
        for parameter in trainer.student.parameters():
            parameter.add_(0.1)
    assert evaluation.student() == before
    trainer.average.update(0.0)
    assert evaluation.student()[0]["distance"] != before[0]["distance"]


def test_the_teachers_samples_are_kept_for_the_same_question_only(
    make: Callable[..., Trainer], plan: Recipe, tmp_path: Path
) -> None:
    trainer = make(plan)
    calls: list[int] = []
    real = trainer.velocities.teacher

    def counting(x, sigma, condition):
        calls.append(len(x))
        return real(x, sigma, condition)

    trainer.velocities = replace(trainer.velocities, teacher=counting)
    first = Evaluation(trainer, tmp_path).teacher
    assert len(calls) == 3 * 6  # seven samples, three at a time
    calls.clear()
    assert torch.equal(Evaluation(trainer, tmp_path).teacher, first) and not calls
    for changes in ({"guidance": 2.0}, {"pictures": 6}, {"teacher_steps": 3}):
        trainer.recipe = replace(plan, evaluation=replace(plan.evaluation, **changes))
        assert not torch.equal(Evaluation(trainer, tmp_path).teacher, first)
        assert calls
        calls.clear()
    trainer.recipe = plan
    (tmp_path / "teacher-samples.safetensors").write_bytes(b"half")
    assert torch.equal(Evaluation(trainer, tmp_path).teacher, first) and calls


def test_samples_that_are_no_numbers_are_reported(
    make: Callable[..., Trainer], plan: Recipe, tmp_path: Path
) -> None:
    trainer = make(plan)
    evaluation = Evaluation(trainer, tmp_path)
    next(iter(trainer.average.values.values())).fill_(float("nan"))
    assert evaluation.student() == ({}, "its samples are not finite")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"brightness": 0.2}, "brightness is 0.2, the teacher's 0.5 (at most 0.25 away is sound)"),
        ({"brightness": 0.8}, "brightness is 0.8"),
        ({"contrast": 0.05}, "contrast is 0.05, the teacher's 0.25 (within a factor of 3"),
        ({"sample_std": 3.5}, "sample_std is 3.5, the teacher's 1 (within a factor of 3"),
        ({"sample_std": 0.2}, "sample_std is 0.2"),
        ({"contrast": float("nan")}, "contrast is nan"),
    ],
)
def test_collapse_says_what_is_off(changes: dict[str, float], message: str) -> None:
    wrong = collapse(SOUND | changes, SOUND)
    assert wrong is not None and message in wrong


def test_soft_pictures_are_no_collapse() -> None:
    soft = {"brightness": 0.4, "contrast": 0.12, "sample_mean": 0.3, "sample_std": 0.6}
    assert collapse(soft, SOUND) is None
