"""The objective against a restatement of the page with separate passes."""

import dataclasses

import pytest
import torch
from pipelines import PROMPTS

from distill.adapters import Condition
from distill.adapters.sd3 import Sd3Adapter
from distill.flow import Anchors, Point
from distill.objective import Velocities, fake_loss, student_losses
from distill.recipe import LossRecipe
from distill.rng import Draws, Level

SHAPE = (4, 16, 16)


@pytest.fixture
def networks(adapter: Sd3Adapter) -> dict[str, torch.nn.Module]:
    """Three different networks, so that a mix-up shows."""
    made = {}
    for seed, name in enumerate(["student", "teacher", "fake"]):
        made[name] = type(adapter.transformer).from_config(adapter.transformer.config)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for parameter in made[name].parameters():
                parameter.normal_(0, 0.1)
    return made


def velocities(adapter: Sd3Adapter, networks: dict[str, torch.nn.Module]) -> Velocities:
    def of(network):
        return lambda x, sigma, condition: adapter.velocity(network, x, sigma, condition)

    return Velocities(**{name: of(network) for name, network in networks.items()})


def anchors(condition: Condition) -> Anchors:
    generator = torch.Generator().manual_seed(0)
    return Anchors(
        x=torch.randn(3, *SHAPE, generator=generator),
        sigma=torch.tensor([1.0, 0.7, 0.3]),
        condition=condition,
        velocity=torch.randn(3, *SHAPE, generator=generator),
    )


def off_of(a: Anchors, draws: Draws) -> Point | None:
    """CDM's input, by the page."""
    if draws.off is None:
        return None
    off, t = (s.view(-1, 1, 1, 1) for s in (draws.off.sigma, a.sigma))
    return Point(a.x + (off - t) * a.velocity.detach(), draws.off.sigma, a.condition)


def regression(v, x, sigma, direction, cond_x0):
    """The page's formula, target and all."""
    x0 = x - sigma * v
    c = (cond_x0 - x0).abs().mean((1, 2, 3), keepdim=True).clamp(min=0.1)
    return ((x0 - (x0 + direction / c).detach()) ** 2).mean()


def some_draws(seed: int, losses: tuple[str, ...] = ("ca", "dm", "cdm")) -> Draws:
    generator = torch.Generator().manual_seed(seed)

    def level():
        sigma = torch.rand(3, generator=generator)
        return Level(sigma, torch.randn(3, *SHAPE, generator=generator))

    return Draws(
        schedule=torch.tensor([1.0, 0.7, 0.3]),
        index=torch.tensor([1, 2, 3]),
        sigma=torch.tensor([1.0, 0.7, 0.3]),
        noise=torch.randn(3, *SHAPE, generator=generator),
        fake=level(),
        teachers={name: level() for name in losses},
        off=level() if "cdm" in losses else None,
    )


def restated(
    networks: Velocities, a: Anchors, condition: Condition, null: Condition, draws: Draws
) -> dict[str, torch.Tensor]:
    """Every forward by itself, in the order of the page, with the same draws."""
    b = len(a.sigma)

    def level(s):
        return s.view(-1, 1, 1, 1)

    t, t_off = level(a.sigma), draws.off.sigma
    x_off = a.x + (level(t_off) - t) * a.velocity
    losses = {}
    for name in ("ca", "dm", "cdm"):
        x, s = (x_off, t_off) if name == "cdm" else (a.x, a.sigma)
        v = networks.student(x, s, condition)
        x0 = (x - level(s) * v).detach()
        seen, eps = draws.teachers[name].sigma, draws.teachers[name].noise
        noisy = (1 - level(seen)) * x0 + level(seen) * eps
        with torch.no_grad():
            cond = noisy - level(seen) * networks.teacher(noisy, seen, condition)
            if name == "ca":
                nulls = Condition.cat([null] * b)
                uncond = noisy - level(seen) * networks.teacher(noisy, seen, nulls)
                direction = 7.0 * (cond - uncond)
            else:
                direction = cond - (noisy - level(seen) * networks.fake(noisy, seen, condition))
        losses[name] = regression(v, x, level(s), direction, cond)
    return losses


def gradient(network: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    network.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_merged_passes_equal_the_page(adapter: Sd3Adapter, networks) -> None:
    both = velocities(adapter, networks)
    condition, null = adapter.encode(PROMPTS[:3]), adapter.encode([""])
    a = anchors(condition)
    draws = some_draws(5)
    ours = student_losses(both, a, off_of(a, draws), null, LossRecipe(), draws)
    expected = restated(both, a, condition, null, draws)
    assert list(ours) == ["ca", "dm", "cdm"]
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4)
    student = networks["student"]
    mine = gradient(student, sum(ours.values()))
    theirs = gradient(student, sum(expected.values()))
    assert (mine - theirs).norm() / theirs.norm() < 1e-5
    assert all(p.grad is None for p in networks["teacher"].parameters())
    assert all(p.grad is None for p in networks["fake"].parameters())


def test_the_forward_at_the_anchor_can_be_half_of_the_students_pass(
    adapter: Sd3Adapter, networks
) -> None:
    """Given with its gradient, it spares a forward and changes nothing."""
    both = velocities(adapter, networks)
    condition, null = adapter.encode(PROMPTS[:3]), adapter.encode([""])
    a = anchors(condition)
    graded = dataclasses.replace(a, velocity=both.student(a.x, a.sigma, condition))
    plain = dataclasses.replace(a, velocity=graded.velocity.detach())
    sizes = []

    def counting(x, sigma, condition):
        sizes.append(len(x))
        return both.student(x, sigma, condition)

    counted = dataclasses.replace(both, student=counting)
    found = []
    for given in (graded, plain):
        draws = some_draws(5)
        losses = student_losses(counted, given, off_of(a, draws), null, LossRecipe(), draws)
        found.append(gradient(networks["student"], sum(losses.values())))
    assert sizes == [3, 6]
    assert (found[0] - found[1]).norm() / found[1].norm() < 1e-5


@pytest.mark.parametrize(
    ("weights", "by_student", "by_teacher", "by_fake"),
    [
        ((1, 1, 1), [6], [12], [6]),
        ((1, 0, 0), [3], [6], []),
        ((0, 1, 0), [3], [3], [3]),
        ((0, 0, 1), [3], [3], [3]),
        ((1, 1, 0), [3], [9], [3]),
    ],
)
def test_forwards_spent(adapter: Sd3Adapter, weights, by_student, by_teacher, by_fake) -> None:
    """Samples in each call: one merged pass a network, and none for a loss of weight 0."""
    spent: dict[str, list[int]] = {"student": [], "teacher": [], "fake": []}

    def counting(name):
        def velocity(x, sigma, condition):
            assert len(x) == len(sigma) == len(condition)
            spent[name].append(len(x))
            return torch.zeros_like(x)

        return velocity

    recipe = dataclasses.replace(
        LossRecipe(), **dict(zip(("ca", "dm", "cdm"), weights, strict=True))
    )
    a = anchors(adapter.encode(PROMPTS[:3]))
    draws = some_draws(0, tuple(n for n, w in zip(("ca", "dm", "cdm"), weights, strict=True) if w))
    losses = student_losses(
        Velocities(**{name: counting(name) for name in spent}),
        a,
        off_of(a, draws),
        adapter.encode([""]),
        recipe,
        draws,
    )
    assert spent == {"student": by_student, "teacher": by_teacher, "fake": by_fake}
    assert list(losses) == [n for n, w in zip(("ca", "dm", "cdm"), weights, strict=True) if w]


def test_fake_loss_is_flow_matching_at_its_draws(adapter: Sd3Adapter, networks) -> None:
    fake = velocities(adapter, networks).fake
    condition = adapter.encode(PROMPTS[:3])
    x0 = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    level = some_draws(7).fake
    loss = fake_loss(fake, x0, condition, level)
    eps, s = level.noise, level.sigma.view(-1, 1, 1, 1)
    v = fake((1 - s) * x0 + s * eps, s.flatten(), condition)
    assert loss.item() == pytest.approx(((v - (eps - x0)) ** 2).mean().item(), rel=1e-5)
