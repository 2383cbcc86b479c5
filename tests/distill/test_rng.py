"""An iteration's draws: the same whoever draws them, and what each is drawn from."""

from dataclasses import replace

import pytest
import torch

from distill.recipe import LossRecipe, Recipe, ScheduleRecipe
from distill.rng import Draws, Rng

SHAPE = (2, 3, 3)


def dice(recipe: Recipe, rows: slice = slice(0, None)) -> Rng:
    def shift(sigmas: torch.Tensor) -> torch.Tensor:
        return 3 * sigmas / (1 + 2 * sigmas)

    return Rng(recipe, SHAPE, shift, rows, torch.device("cpu"))


def tensors(draws: Draws) -> list[torch.Tensor]:
    levels = [draws.fake, *draws.teachers.values(), *([draws.off] if draws.off else [])]
    return [
        *(draws.index, draws.sigma, draws.noise),
        *(level.sigma for level in levels),
        *(level.noise for level in levels),
    ]


@pytest.mark.parametrize("index", ["per_sample", "shared"])
def test_a_process_draws_its_rows_of_what_one_alone_would_draw(recipe: Recipe, index: str) -> None:
    recipe = replace(recipe, batch=6, schedule=ScheduleRecipe(n_max=5, index=index))
    whole, second = dice(recipe), dice(recipe, slice(2, 4))
    for student in (False, True, False, True):
        ours, theirs = whole.iteration(student), second.iteration(student)
        assert torch.equal(ours.schedule, theirs.schedule)
        for mine, other in zip(tensors(ours[2:4]), tensors(theirs), strict=True):
            assert torch.equal(mine, other)
        assert len(theirs) == 2 and len(ours) == 6


def test_the_state_continues_the_sequence(recipe: Recipe) -> None:
    first = dice(recipe)
    first.iteration(student=True)
    second = dice(replace(recipe, seed=9))
    second.load_state_dict(first.state_dict())
    for mine, other in zip(
        tensors(first.iteration(True)), tensors(second.iteration(True)), strict=True
    ):
        assert torch.equal(mine, other)


def test_only_what_the_losses_need_is_drawn(recipe: Recipe) -> None:
    assert not dice(recipe).iteration(student=False).teachers
    drawn = dice(replace(recipe, loss=LossRecipe(ca=1, dm=0, cdm=0))).iteration(student=True)
    assert list(drawn.teachers) == ["ca"] and drawn.off is None
    loss = LossRecipe(off_trajectory="none")
    drawn = dice(replace(recipe, loss=loss)).iteration(student=True)
    assert list(drawn.teachers) == ["ca", "dm", "cdm"] and drawn.off is None


@pytest.mark.parametrize("sigmas", ["uniform", "logit_normal"])
def test_levels(recipe: Recipe, sigmas: str) -> None:
    """CA's stay below the anchor's; the teachers' are drawn as the recipe says; noise is normal."""
    recipe = replace(
        recipe, batch=4000, loss=LossRecipe(sigmas=sigmas), schedule=ScheduleRecipe(n_max=4)
    )
    draws = dice(recipe).iteration(student=True)
    assert torch.equal(draws.sigma, draws.schedule[draws.index - 1])
    assert (draws.teachers["ca"].sigma <= draws.sigma).all()
    # The quartile of the uniform distribution and of a standard normal's sigmoid.
    quartile = 0.25 if sigmas == "uniform" else torch.tensor(-0.6745).sigmoid().item()
    for name in ("dm", "cdm"):
        assert draws.teachers[name].sigma.quantile(0.25).item() == pytest.approx(quartile, abs=0.03)
    assert draws.fake.sigma.quantile(0.25).item() == pytest.approx(0.25, abs=0.03)
    for level in (draws.fake, draws.teachers["dm"]):
        assert level.noise.std().item() == pytest.approx(1, abs=0.02)
