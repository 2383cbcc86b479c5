"""AdamW as the recipe wants it, one step at a time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import AdamW

from distill.recipe import OptimiserRecipe


def adamw(network: nn.Module, recipe: OptimiserRecipe) -> AdamW:
    """The optimiser of a network's parameters; ``step`` sets its learning rate."""
    return AdamW(
        network.parameters(),
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def step(
    loss: Tensor,
    network: nn.Module,
    optimiser: AdamW,
    rate: float,
    done: int,
    recipe: OptimiserRecipe,
) -> Tensor:
    """Backward, clip, update.

    Args:
        loss: scalar.
        network: whose gradients are clipped together.
        optimiser: of that network.
        rate: the learning rate after the warm-up.
        done: steps this optimiser has taken, for the warm-up.
        recipe: warm-up and clipping.

    Returns:
        The gradient's norm before clipping, a scalar on the device.
    """
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.grad_clip)
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1.0, (done + 1) / max(1, recipe.warmup))
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm
