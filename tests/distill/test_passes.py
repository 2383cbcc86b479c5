"""A merged pass against separate passes, through a real transformer with its gradients."""

import torch
from pipelines import tiny_sd3

from distill.adapters import load_adapter
from distill.passes import Point, merged


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
