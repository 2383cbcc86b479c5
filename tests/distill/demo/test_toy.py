"""The method on a problem whose answers are known."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from distill.adapters import Condition
from distill.demo.toy import (
    CLASSES,
    LOSSES,
    STEPS,
    Network,
    Toy,
    energy_distance,
    everyone,
    example,
    main,
    nobody,
    one_of,
    rollout,
    sample,
    train,
)
from distill.flow import rollout as thrifty_rollout

TEACHER = example()
POINTS = 700


def drawn(seed: int = 1) -> Tensor:
    return TEACHER.draw(everyone(POINTS), torch.Generator().manual_seed(seed))


def guided(alpha: float) -> Tensor:
    return sample(TEACHER.guided(1 + alpha), 100, everyone(POINTS), seed=3)


@pytest.fixture(scope="module")
def students() -> dict[str, Tensor]:
    """What each set of losses leads to, in four steps."""
    torch.set_num_threads(1)
    points = {}
    for name in ("CA", "DM", "CA + DM + CDM"):
        ca, dm, cdm = LOSSES[name]
        student = train(TEACHER, Toy(ca=ca, dm=dm, cdm=cdm))
        points[name] = sample(student, STEPS, everyone(POINTS), seed=2)
    return points


@pytest.mark.parametrize("prompt", ["one class", "none"])
@pytest.mark.parametrize("sigma", [0.02, 0.4, 0.98])
def test_the_teachers_velocity_is_that_of_the_mixtures_score(prompt: str, sigma: float) -> None:
    """``v = -(x + sigma * score) / (1 - sigma)``, the score by automatic differentiation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=generator).requires_grad_()
    classes = one_of(torch.ones(50, dtype=torch.int64)) if prompt == "one class" else nobody(50)
    spread = ((1 - sigma) ** 2 * TEACHER.stds**2 + sigma**2).sqrt()
    noisy = MixtureSameFamily(
        Categorical(probs=classes[0] @ TEACHER.weights),
        Independent(Normal((1 - sigma) * TEACHER.means, spread[:, None].expand(-1, 2)), 1),
    )
    (score,) = torch.autograd.grad(noisy.log_prob(x).sum(), x)
    velocity = TEACHER.velocity(x, torch.full((50,), sigma), classes)
    reference = -(x + sigma * score) / (1 - sigma)
    torch.testing.assert_close(velocity, reference, rtol=2e-4, atol=2e-4)


def test_the_teachers_ode_ends_in_its_samples() -> None:
    ends = sample(TEACHER.velocity, 100, everyone(POINTS), seed=2)
    assert abs(energy_distance(ends, drawn())) < 0.005
    # The distance does tell the classes apart.
    assert energy_distance(ends.roll(POINTS, 0), drawn()) > 0.5


def test_energy_distance_of_points_that_coincide() -> None:
    a, b = torch.zeros(3 * CLASSES, 2), torch.tensor([3.0, 4.0]).expand(2 * CLASSES, 2)
    assert energy_distance(a, b) == pytest.approx(2 * 5.0)


def test_a_student_starts_as_the_teacher() -> None:
    x, sigma, classes = torch.randn(30, 2), torch.rand(30), everyone(10)
    assert torch.equal(Network(TEACHER)(x, sigma, classes), TEACHER.velocity(x, sigma, classes))


def test_the_rollout_stops_where_the_trainers_does() -> None:
    schedule, index = torch.tensor([1.0, 0.7, 0.2]), torch.tensor([3, 1, 2, 3, 1, 2])
    noise, classes = torch.randn(6, 2), everyone(2)
    x, sigma, _ = rollout(TEACHER.velocity, noise, schedule, index, classes)
    reference = thrifty_rollout(
        lambda x, sigma, condition: TEACHER.velocity(x, sigma, condition.tensors["class"]),
        noise,
        schedule,
        index,
        Condition({"class": classes}),
    )
    torch.testing.assert_close(x, reference)
    assert torch.equal(sigma, schedule[index - 1])


def test_guidance_alone_runs_away(students: dict[str, Tensor]) -> None:
    assert students["CA"].norm(dim=1).median() > 4 * drawn().norm(dim=1).max()
    assert energy_distance(students["CA"], guided(Toy.alpha)) > 5


def test_distribution_matching_alone_lands_on_the_unguided_teacher(
    students: dict[str, Tensor],
) -> None:
    untrained = sample(TEACHER.velocity, STEPS, everyone(POINTS), seed=2)
    reached = energy_distance(students["DM"], drawn())
    assert reached < 0.7 * energy_distance(untrained, drawn())
    assert reached < 0.5 * energy_distance(students["DM"], guided(Toy.alpha))


def test_the_full_objective_comes_closest_to_the_guided_teacher(
    students: dict[str, Tensor],
) -> None:
    distances = {name: energy_distance(p, guided(Toy.alpha)) for name, p in students.items()}
    assert distances["CA + DM + CDM"] < 0.6 * distances["DM"]


def test_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "toy.png"), "--updates", "2"]) == 0
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    assert "CA + DM + CDM, 4 steps" in capsys.readouterr().out


def test_says_when_the_picture_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), "--updates", "0"]) == 2
    assert "cannot be written" in capsys.readouterr().err
