"""The losses of CDM (arXiv 2605.06376) as pure functions of network outputs.

Each student loss is a regression of ``x0_hat = x - sigma * v`` onto its own detached value moved
by a direction D: ``mean((x0_hat - stopgrad(x0_hat + D / c))^2)``, with the per-sample normaliser
``c = max(floor, mean|R_cond_x0 - x0_hat|)``. Its value is ``mean((D / c)^2)``; its gradient with
respect to ``x0_hat`` is ``-2 * D / (c * numel)``.
"""

from __future__ import annotations

from torch import Tensor

from distill.flow import per_sample, predicted_x0


def ca_loss(
    v_student: Tensor,
    v_cond: Tensor,
    v_uncond: Tensor,
    x_student: Tensor,
    x_teacher: Tensor,
    sigma_student: Tensor,
    sigma_teacher: Tensor,
    alpha: float = 7.0,
    floor: float = 0.1,
) -> Tensor:
    """CFG augmentation: move along ``alpha * (R_cond - R_uncond)`` in x0 space.

    Args:
        v_student: the student's velocity at ``(x_student, sigma_student)``, (B, ...); the only
            argument that receives a gradient.
        v_cond: the teacher's velocity with the prompt at ``(x_teacher, sigma_teacher)``, (B, ...).
        v_uncond: the same without the prompt.
        x_student: the student's input on its trajectory, (B, ...).
        x_teacher: the student's x0_hat with fresh noise at ``sigma_teacher``, (B, ...).
        sigma_student: (B,).
        sigma_teacher: (B,).
        alpha: the guidance that the student absorbs.
        floor: the normaliser's least value.

    Returns:
        A scalar in float32.
    """
    x0_cond = predicted_x0(x_teacher, sigma_teacher, v_cond)
    x0_uncond = predicted_x0(x_teacher, sigma_teacher, v_uncond)
    x0_student = predicted_x0(x_student.detach(), sigma_student.detach(), v_student)
    return _move_along(x0_student, alpha * (x0_cond - x0_uncond), x0_cond, floor)


def dm_loss(
    v_student: Tensor,
    v_cond: Tensor,
    v_fake: Tensor,
    x_student: Tensor,
    x_teacher: Tensor,
    sigma_student: Tensor,
    sigma_teacher: Tensor,
    floor: float = 0.1,
) -> Tensor:
    """Distribution matching: move along ``R_cond - F_cond`` in x0 space.

    With ``x_student`` on the student's trajectory this is the paper's DM loss, off the trajectory
    it is the CDM loss.

    Args:
        v_student: the student's velocity at ``(x_student, sigma_student)``, (B, ...); the only
            argument that receives a gradient.
        v_cond: the teacher's velocity with the prompt at ``(x_teacher, sigma_teacher)``, (B, ...).
        v_fake: the fake teacher's velocity at the same point.
        x_student: the student's input, (B, ...).
        x_teacher: the student's x0_hat with fresh noise at ``sigma_teacher``, (B, ...).
        sigma_student: (B,).
        sigma_teacher: (B,).
        floor: the normaliser's least value.

    Returns:
        A scalar in float32.
    """
    x0_cond = predicted_x0(x_teacher, sigma_teacher, v_cond)
    x0_fake = predicted_x0(x_teacher, sigma_teacher, v_fake)
    x0_student = predicted_x0(x_student.detach(), sigma_student.detach(), v_student)
    return _move_along(x0_student, x0_cond - x0_fake, x0_cond, floor)


def flow_matching_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """``mean((v - (noise - x0))^2)``, a scalar in float32; trains the fake teacher.

    Args:
        velocity: the network's output on ``x0`` noised with ``noise``, (B, ...); the only argument
            that receives a gradient.
        x0: clean latents, (B, ...).
        noise: (B, ...).
    """
    target = (noise.float() - x0.float()).detach()
    return (velocity.float() - target).square().mean()


def _move_along(x0_student: Tensor, direction: Tensor, x0_cond: Tensor, floor: float) -> Tensor:
    here = x0_student.detach()
    distance = (x0_cond - here).abs().flatten(1).mean(1).clamp(min=floor)
    step = (direction / per_sample(distance, here)).detach()
    # x0 - (x0 + step) would round away small steps; x0 - x0 is exactly zero.
    return (x0_student - here - step).square().mean()
