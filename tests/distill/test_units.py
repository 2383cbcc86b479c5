"""The counted forwards against the published number and against a trainer at work."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from distill.recipe import LossRecipe, Recipe, RuntimeRecipe, ScheduleRecipe
from distill.trainer import Trainer
from distill.units import mean_anchor, units_per_update

CPU = RuntimeRecipe(device="cpu", precision="fp32")


def test_the_published_recipe_costs_36_5() -> None:
    """cf. 55 with full rollouts and separate passes."""
    recipe = Recipe(teacher="", output="", prompts="", height=8, width=8)
    recipe = replace(recipe, runtime=RuntimeRecipe(gradient_checkpointing=True))
    assert sum(units_per_update(recipe).values()) == 36.5


def test_the_mean_anchor_is_that_of_all_equally_likely_draws(recipe: Recipe) -> None:
    for most in (1, 4, 28):
        means = [sum(range(1, n + 1)) / n for n in range(1, most + 1)]
        dynamic = replace(recipe, schedule=ScheduleRecipe(n_max=most))
        assert mean_anchor(dynamic) == pytest.approx(sum(means) / most)
    assert mean_anchor(replace(recipe, steps=4, schedule=ScheduleRecipe(kind="fixed"))) == 2.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": LossRecipe(ca=1, dm=0, cdm=0)},
        {"loss": LossRecipe(ca=0, dm=1, cdm=0)},
        {"loss": LossRecipe(ca=0, dm=0, cdm=1)},
        {"loss": LossRecipe(ca=0, dm=1, cdm=1, off_trajectory="none")},
        {"loss": LossRecipe(off_trajectory="noise")},
        {"fake_updates": 3},
        {"runtime": replace(CPU, accumulate=3)},
        {"runtime": replace(CPU, gradient_checkpointing=True)},
    ],
    ids=["all", "ca", "dm", "cdm", "none", "noise", "three fake updates", "parts", "recomputed"],
)
def test_a_trainer_does_what_was_counted(
    make: Callable[..., Trainer], recipe: Recipe, changes: dict[str, object]
) -> None:
    """With one anchor nothing is left to chance. A trained pass counts three, or four."""
    plan = replace(recipe, schedule=ScheduleRecipe(n_max=1), **changes)
    trainer = make(plan)
    total = 0
    trained = 4 if plan.runtime.gradient_checkpointing else 3
    real = trainer.adapter.velocity

    def counting(model, x, sigma, condition):
        nonlocal total
        total += len(x) * (trained if torch.is_grad_enabled() else 1)
        return real(model, x, sigma, condition)

    trainer.adapter.velocity = counting
    trainer.update()
    assert total == plan.batch * sum(units_per_update(plan).values())
