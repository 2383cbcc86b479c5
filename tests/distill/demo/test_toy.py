"""The method on a problem whose answers are known."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from distill.demo.toy import (
    ALPHA,
    PROMPTS,
    STEPS,
    Network,
    encode,
    energy_distance,
    everyone,
    example,
    main,
    points,
    recipe,
    save_panels,
    student_points,
    train,
)
from distill.errors import DistillError

TEACHER = example()
POINTS = 700


def drawn(seed: int = 1) -> Tensor:
    return TEACHER.draw(everyone(POINTS), torch.Generator().manual_seed(seed))


def guided(alpha: float) -> Tensor:
    return points(TEACHER.guided(1 + alpha), 100, everyone(POINTS), seed=3)


@cache
def student(losses: str, anchor: bool = True) -> Tensor:
    """What a set of losses leads to, in four steps."""
    torch.set_num_threads(1)
    trained = train(TEACHER, recipe(losses, anchor=anchor))
    return student_points(trained, STEPS, everyone(POINTS), seed=2)


def distance(losses: str, anchor: bool = True) -> float:
    """From the guided teacher."""
    return energy_distance(student(losses, anchor), guided(ALPHA))


@pytest.mark.parametrize("prompt", [PROMPTS[1], ""])
@pytest.mark.parametrize("sigma", [0.02, 0.4, 0.98])
def test_the_teachers_velocity_is_that_of_the_mixtures_score(prompt: str, sigma: float) -> None:
    """``v = -(x + sigma * score) / (1 - sigma)``, the score by automatic differentiation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=generator).requires_grad_()
    weights = TEACHER.weights.mean(0) if prompt == "" else TEACHER.weights[1]
    spread = ((1 - sigma) ** 2 * TEACHER.stds**2 + sigma**2).sqrt()
    noisy = MixtureSameFamily(
        Categorical(probs=weights),
        Independent(Normal((1 - sigma) * TEACHER.means, spread[:, None].expand(-1, 2)), 1),
    )
    (score,) = torch.autograd.grad(noisy.log_prob(x).sum(), x)
    velocity = TEACHER.velocity(x, torch.full((50,), sigma), encode([prompt] * 50))
    reference = -(x + sigma * score) / (1 - sigma)
    torch.testing.assert_close(velocity, reference, rtol=2e-4, atol=2e-4)


def test_the_teachers_ode_ends_in_its_samples() -> None:
    ends = points(TEACHER.velocity, 100, everyone(POINTS), seed=2)
    assert abs(energy_distance(ends, drawn())) < 0.005
    # The distance does tell the prompts apart.
    assert energy_distance(ends.roll(POINTS, 0), drawn()) > 0.5


def test_energy_distance_of_points_that_coincide() -> None:
    a, b = torch.zeros(9, 2), torch.tensor([3.0, 4.0]).expand(6, 2)
    assert energy_distance(a, b) == pytest.approx(2 * 5.0)


def test_a_student_starts_as_the_teacher() -> None:
    x, sigma, condition = torch.randn(30, 2), torch.rand(30), everyone(10)
    ours, exact = Network(TEACHER)(x, sigma, condition), TEACHER.velocity(x, sigma, condition)
    assert torch.equal(ours, exact)


@pytest.mark.slow
def test_guidance_alone_runs_away() -> None:
    assert student("CA").norm(dim=1).median() > 4 * drawn().norm(dim=1).max()
    assert distance("CA") > 5


@pytest.mark.slow
def test_distribution_matching_alone_lands_on_the_unguided_teacher() -> None:
    untrained = points(TEACHER.velocity, STEPS, everyone(POINTS), seed=2)
    reached = energy_distance(student("DM"), drawn())
    assert reached < 0.7 * energy_distance(untrained, drawn())
    assert reached < 0.5 * distance("DM")


def test_the_full_objective_comes_closest_to_the_guided_teacher() -> None:
    assert distance("CA + DM + CDM") < 0.6 * distance("DM")


@pytest.mark.slow
def test_a_fake_teacher_that_knows_the_anchor_comes_closer() -> None:
    assert distance("CA + DM + CDM") < 0.6 * distance("CA + DM + CDM", anchor=False)


@pytest.mark.slow
def test_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "toy.png"), "--updates", "2"]) == 0
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    assert "CA + DM + CDM, 4 steps" in capsys.readouterr().out


def test_says_when_the_picture_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="cannot be written"):
        save_panels([("one", torch.rand(9, 2)), ("two", torch.rand(9, 2))], tmp_path)
