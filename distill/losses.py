"""The losses of CDM (arXiv 2605.06376) as pure functions of clean pictures, ``x0_hat = x - s * v``.

Each student loss is a regression of the student's x0_hat onto its own detached value moved by a
direction D: ``mean((x0_hat - stopgrad(x0_hat + D / c))^2)``, with the per-sample normaliser
``c = max(floor, mean|R_cond_x0 - x0_hat|)``. Its value is ``mean((D / c)^2)``; its gradient with
respect to ``x0_hat`` is ``-2 * D / (c * numel)``. All are scalars in float32.
"""

from __future__ import annotations

from torch import Tensor

from distill.flow import per_sample


def ca_loss(
    x0: Tensor, x0_cond: Tensor, x0_uncond: Tensor, alpha: float = 7.0, floor: float = 0.1
) -> Tensor:
    """CFG augmentation: move along ``alpha * (R_cond - R_uncond)``.

    Args:
        x0: the student's, (B, ...); the only argument that receives a gradient.
        x0_cond: the teacher's with the prompt, from the student's under fresh noise.
        x0_uncond: the same without the prompt.
        alpha: the guidance that the student absorbs.
        floor: the normaliser's least value.
    """
    return _move_along(x0, alpha * (x0_cond - x0_uncond), x0_cond, floor)


def dm_loss(x0: Tensor, x0_cond: Tensor, x0_fake: Tensor, floor: float = 0.1) -> Tensor:
    """Distribution matching: move along ``R_cond - F_cond``.

    On the student's trajectory this is the paper's DM loss, off the trajectory the CDM loss.

    Args:
        x0: the student's, (B, ...); the only argument that receives a gradient.
        x0_cond: the teacher's with the prompt, from the student's under fresh noise.
        x0_fake: the fake teacher's, from the same.
        floor: the normaliser's least value.
    """
    return _move_along(x0, x0_cond - x0_fake, x0_cond, floor)


def flow_matching_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """``mean((v - (noise - x0))^2)``; trains the fake teacher.

    Args:
        velocity: the network's output on ``x0`` noised with ``noise``, (B, ...); the only argument
            that receives a gradient.
        x0: clean latents, (B, ...).
        noise: (B, ...).
    """
    target = (noise.float() - x0.float()).detach()
    return (velocity.float() - target).square().mean()


def _move_along(x0: Tensor, direction: Tensor, x0_cond: Tensor, floor: float) -> Tensor:
    here = x0.detach()
    distance = (x0_cond - here).abs().flatten(1).mean(1).clamp(min=floor)
    step = (direction / per_sample(distance, here)).detach()
    # x0 - (x0 + step) would round away small steps; x0 - x0 is exactly zero.
    return (x0 - here - step).square().mean()
