"""AdamW steps against the textbook update."""

import pytest
import torch
from torch import nn

from distill.optimiser import adamw, step
from distill.recipe import OptimiserRecipe


def test_three_steps_match_the_formula_with_warmup_decay_and_clipping() -> None:
    recipe = OptimiserRecipe(warmup=2, weight_decay=0.1, grad_clip=0.5)
    network = nn.Linear(3, 1, bias=False)
    optimiser = adamw(network, recipe)
    w = network.weight.detach().double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    inputs = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0))
    for k in range(3):
        network(inputs[k]).square().mean().backward()
        norm = step(optimiser, 1e-2, k, recipe)
        x = inputs[k].double()
        gradient = 2 * (x @ w.T).T @ x / 5
        assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-4)
        gradient = gradient * min(1.0, 0.5 / gradient.norm())
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 1e-2 * min(1.0, (k + 1) / 2)
        w = w * (1 - rate * 0.1)
        w = w - rate * (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
        torch.testing.assert_close(network.weight.detach().double(), w, rtol=1e-5, atol=1e-6)
    assert network.weight.grad is None
