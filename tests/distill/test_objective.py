"""The objective against a restatement of the page with separate passes."""

import dataclasses

import pytest
import torch
from pipelines import PROMPTS

from distill.adapters import Condition, Sd3Adapter
from distill.objective import Velocities, fake_loss, student_losses
from distill.recipe import LossRecipe
from distill.rollout import Anchors
from distill.schedule import uniform_sigmas

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


def anchors(generator: torch.Generator) -> Anchors:
    return Anchors(
        x=torch.randn(3, *SHAPE, generator=generator),
        sigma=torch.tensor([1.0, 0.7, 0.3]),
        velocity=torch.randn(3, *SHAPE, generator=generator),
    )


def regression(v, x, sigma, direction, cond_x0):
    """The page's formula, target and all."""
    x0 = x - sigma * v
    c = (cond_x0 - x0).abs().mean((1, 2, 3), keepdim=True).clamp(min=0.1)
    return ((x0 - (x0 + direction / c).detach()) ** 2).mean()


def restated(
    networks: Velocities, a: Anchors, condition: Condition, null: Condition, seed: int
) -> dict[str, torch.Tensor]:
    """Every forward by itself, in the order of the page, with the same draws."""
    generator = torch.Generator().manual_seed(seed)
    b = len(a.sigma)

    def level(s):
        return s.view(-1, 1, 1, 1)

    t, t_off = level(a.sigma), uniform_sigmas(b, generator)
    x_off = a.x + (level(t_off) - t) * a.velocity
    losses = {}
    for name in ("ca", "dm", "cdm"):
        x, s = (x_off, t_off) if name == "cdm" else (a.x, a.sigma)
        v = networks.student(x, s, condition)
        x0 = (x - level(s) * v).detach()
        seen = uniform_sigmas(b, generator, a.sigma if name == "ca" else None)
        eps = torch.randn(x.shape, generator=generator)
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
    a = anchors(torch.Generator().manual_seed(0))
    condition, null = adapter.encode(PROMPTS[:3]), adapter.encode([""])
    ours = student_losses(both, a, condition, null, LossRecipe(), torch.Generator().manual_seed(5))
    expected = restated(both, a, condition, null, seed=5)
    assert list(ours) == ["ca", "dm", "cdm"]
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4)
    student = networks["student"]
    mine = gradient(student, sum(ours.values()))
    theirs = gradient(student, sum(expected.values()))
    assert (mine - theirs).norm() / theirs.norm() < 1e-5
    assert all(p.grad is None for p in networks["teacher"].parameters())
    assert all(p.grad is None for p in networks["fake"].parameters())


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
    losses = student_losses(
        Velocities(**{name: counting(name) for name in spent}),
        anchors(torch.Generator().manual_seed(0)),
        adapter.encode(PROMPTS[:3]),
        adapter.encode([""]),
        recipe,
        torch.Generator().manual_seed(0),
    )
    assert spent == {"student": by_student, "teacher": by_teacher, "fake": by_fake}
    assert list(losses) == [n for n, w in zip(("ca", "dm", "cdm"), weights, strict=True) if w]


def test_fake_loss_is_flow_matching_at_its_draws(adapter: Sd3Adapter, networks) -> None:
    fake = velocities(adapter, networks).fake
    condition = adapter.encode(PROMPTS[:3])
    x0 = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    loss = fake_loss(fake, x0, condition, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    eps = torch.randn(x0.shape, generator=generator)
    s = uniform_sigmas(3, generator).view(-1, 1, 1, 1)
    v = fake((1 - s) * x0 + s * eps, s.flatten(), condition)
    assert loss.item() == pytest.approx(((v - (eps - x0)) ** 2).mean().item(), rel=1e-5)
