"""AdamW as the recipe wants it, one step at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW

from distill.ema import trained
from distill.recipe import OptimiserRecipe


def adamw(network: nn.Module, recipe: OptimiserRecipe) -> AdamW:
    """The optimiser of a network's trained parameters; ``step`` sets its learning rate."""
    return AdamW(
        list(trained(network).values()),
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def step(optimiser: AdamW, rate: float, done: int, recipe: OptimiserRecipe) -> Tensor:
    """Clip the gradients together, update, forget them.

    Args:
        optimiser: of the network whose gradients are there.
        rate: the learning rate after the warm-up.
        done: steps this optimiser has taken, for the warm-up.
        recipe: warm-up and clipping.

    Returns:
        The gradient's norm before clipping, a scalar on the device.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm: Any = nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1.0, (done + 1) / max(1, recipe.warmup))
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole
