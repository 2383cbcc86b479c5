"""The rollout against the plain full one, a merged pass against separate ones."""

import pytest
import torch
from pipelines import tiny_sd3

from distill.adapters import Condition, load_adapter
from distill.flow import Point, euler, merged, noised, predicted_x0, rollout

SHAPE = (2, 3, 3)


def some_velocity(x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
    """Nonlinear, and different for every sample, level and prompt; no sample sees another."""
    level = sigma.view(-1, 1, 1, 1)
    return torch.sin(3 * x * level + condition.tensors["pooled"][:, :1, None, None]) + level


def condition_of(batch: int) -> Condition:
    rows = torch.arange(batch, dtype=torch.float32)
    return Condition({"pooled": rows.view(-1, 1)})


def test_each_sample_stops_where_the_full_rollout_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    schedule = torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1])
    index = torch.tensor([3, 1, 5, 2, 2, 4, 1])
    noise = torch.randn(7, *SHAPE, generator=generator)
    condition = condition_of(7)

    xs, vs, x = [], [], noise
    for i, sigma in enumerate(schedule):
        xs.append(x)
        vs.append(some_velocity(x, sigma.expand(7), condition))
        if i + 1 < len(schedule):
            x = x + (schedule[i + 1] - sigma) * vs[-1]

    reached = rollout(some_velocity, noise, schedule, index, condition)
    for b, i in enumerate(index.tolist()):
        torch.testing.assert_close(reached[b], xs[i - 1][b])


def test_finished_samples_cost_nothing() -> None:
    sizes = []

    def counting(x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
        assert len(x) == len(sigma) == len(condition)
        sizes.append(len(x))
        return x

    index = torch.tensor([3, 1, 2, 2])
    schedule = torch.tensor([1.0, 0.9, 0.75, 0.5])
    rollout(counting, torch.randn(4, *SHAPE), schedule, index, condition_of(4))
    assert sizes == [3, 1]
    assert sum(sizes) == (index - 1).sum()


def test_no_gradient_reaches_the_student() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    reached = rollout(
        lambda x, sigma, condition: weight * x,
        torch.randn(2, *SHAPE),
        torch.tensor([1.0, 0.5]),
        torch.tensor([2, 1]),
        condition_of(2),
    )
    assert not reached.requires_grad


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_flow_matching_identities(sigma: float) -> None:
    """With the true velocity eps - x0, x0_hat is x0 and an Euler step lands on the path."""
    x0, eps = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(0))
    here, there = torch.full((4,), sigma), torch.full((4,), 0.6)
    x = noised(x0, here, eps)
    torch.testing.assert_close(predicted_x0(x, here, eps - x0), x0)
    torch.testing.assert_close(euler(x, eps - x0, here, there), noised(x0, there, eps))


def test_merged_equals_separate_in_values_and_gradients(tmp_path) -> None:
    adapter = load_adapter(str(tiny_sd3(tmp_path / "teacher")), max_sequence_length=0)
    model = adapter.transformer
    generator = torch.Generator().manual_seed(0)
    prompts = {"on": ["a fox", "an owl"], "off": ["a cat", "a dog", ""]}
    points = {
        name: Point(
            torch.randn(len(texts), 4, 16, 16, generator=generator),
            torch.rand(len(texts), generator=generator),
            adapter.encode(texts),
        )
        for name, texts in prompts.items()
    }

    def velocity(x, sigma, condition):
        return adapter.velocity(model, x, sigma, condition)

    def gradient(outputs):
        model.zero_grad()
        (outputs["on"].square().sum() + 3 * outputs["off"].sin().sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together = merged(velocity, points)
    apart = {name: velocity(p.x, p.sigma, p.condition) for name, p in points.items()}
    assert list(together) == ["on", "off"]
    for name in points:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-5, atol=1e-6)
    difference = gradient(together) - gradient(apart)
    assert difference.norm() / gradient(merged(velocity, points)).norm() < 1e-5


def test_no_points_cost_no_forward() -> None:
    assert merged(None, {}) == {}
