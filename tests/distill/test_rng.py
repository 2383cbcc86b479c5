"""An iteration's draws: the same whoever draws them, and what each is drawn from."""

from dataclasses import replace

import pytest
import torch

from distill.recipe import LossRecipe, Recipe, ScheduleRecipe
from distill.rng import Draws, Rng

SHAPE = (2, 3, 3)


def rng(recipe: Recipe, rows: slice = slice(0, None)) -> Rng:
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
    whole, second = rng(recipe), rng(recipe, slice(2, 4))
    for student in (False, True, False, True):
        ours, theirs = whole.iteration(student), second.iteration(student)
        assert torch.equal(ours.schedule, theirs.schedule)
        for mine, other in zip(tensors(ours[2:4]), tensors(theirs), strict=True):
            assert torch.equal(mine, other)
        assert len(theirs) == 2 and len(ours) == 6


def test_the_state_continues_the_sequence(recipe: Recipe) -> None:
    first = rng(recipe)
    first.iteration(student=True)
    second = rng(replace(recipe, seed=9))
    second.load_state_dict(first.state_dict())
    for mine, other in zip(
        tensors(first.iteration(True)), tensors(second.iteration(True)), strict=True
    ):
        assert torch.equal(mine, other)


def test_only_what_the_losses_need_is_drawn(recipe: Recipe) -> None:
    assert not rng(recipe).iteration(student=False).teachers
    drawn = rng(replace(recipe, loss=LossRecipe(ca=1, dm=0, cdm=0))).iteration(student=True)
    assert list(drawn.teachers) == ["ca"] and drawn.off is None
    drawn = rng(recipe).iteration(student=True)
    assert list(drawn.teachers) == ["ca", "dm", "cdm"] and drawn.off is not None


def test_levels(recipe: Recipe) -> None:
    """CA's stay below the anchor's, the others are uniform; noise is normal."""
    recipe = replace(recipe, batch=4000, schedule=ScheduleRecipe(n_max=4))
    draws = rng(recipe).iteration(student=True)
    assert torch.equal(draws.sigma, draws.schedule[draws.index - 1])
    assert (draws.teachers["ca"].sigma <= draws.sigma).all()
    for level in (draws.teachers["dm"], draws.teachers["cdm"], draws.fake, draws.off):
        assert level.sigma.quantile(0.25).item() == pytest.approx(0.25, abs=0.03)
    for level in (draws.fake, draws.teachers["dm"]):
        assert level.noise.std().item() == pytest.approx(1, abs=0.02)
