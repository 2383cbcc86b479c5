"""What each network is trained on, given the points where the student's rollout stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from distill.adapters import Condition
from distill.flow import euler, noised, predicted_x0
from distill.losses import ca_loss, dm_loss, flow_matching_loss
from distill.passes import Point, merged
from distill.recipe import LossRecipe
from distill.rollout import Anchors, Velocity
from distill.schedule import uniform_sigmas


@dataclass(frozen=True)
class Velocities:
    """The three networks of CDM."""

    student: Velocity
    teacher: Velocity
    fake: Velocity


def fake_loss(fake: Velocity, x0: Tensor, condition: Condition, generator: Generator) -> Tensor:
    """Flow matching on the student's own pictures ``x0`` (B, C, h, w), at one level each."""
    noise = _noise_like(x0, generator)
    sigma = uniform_sigmas(len(x0), generator)
    return flow_matching_loss(fake(noised(x0, sigma, noise), sigma, condition), x0, noise)


def student_losses(
    velocities: Velocities,
    anchors: Anchors,
    condition: Condition,
    null: Condition,
    recipe: LossRecipe,
    generator: Generator,
) -> dict[str, Tensor]:
    """CA, DM and CDM by name, unweighted scalars; a loss of weight 0 is not computed.

    One merged pass each: student [on; off the trajectory], teacher [ca; dm; cdm; ca without the
    prompt], fake [dm; cdm].

    Args:
        velocities: the student's outputs carry gradients, the others' do not.
        anchors: the rollout's points; its own velocity extrapolates off the trajectory, so both
            student inputs are known before its pass.
        condition: B rows.
        null: the empty prompt, one row.
        recipe: weights, alpha and floor.
        generator: on the device of the latents.
    """
    batch = len(anchors.sigma)
    inputs: dict[str, Point] = {}
    if recipe.ca or recipe.dm:
        inputs["on"] = Point(anchors.x, anchors.sigma, condition)
    if recipe.cdm:
        sigma = uniform_sigmas(batch, generator)
        x = euler(anchors.x, anchors.velocity, anchors.sigma, sigma)
        inputs["off"] = Point(x, sigma, condition)
    v_student = merged(velocities.student, inputs)

    def renoised(name: str, cap: Tensor | None = None) -> Point:
        """The student's picture from an input, with fresh noise at a level of its own."""
        x0 = predicted_x0(inputs[name].x, inputs[name].sigma, v_student[name].detach())
        sigma = uniform_sigmas(batch, generator, cap)
        return Point(noised(x0, sigma, _noise_like(x0, generator)), sigma, condition)

    seen: dict[str, Point] = {}
    if recipe.ca:
        seen["ca"] = renoised("on", cap=anchors.sigma)
    if recipe.dm:
        seen["dm"] = renoised("on")
    if recipe.cdm:
        seen["cdm"] = renoised("off")
    taught = dict(seen)
    if recipe.ca:
        taught["ca_uncond"] = replace(seen["ca"], condition=null.expand(batch))
    matched: dict[str, Point] = {name: seen[name] for name in ("dm", "cdm") if name in seen}
    with torch.no_grad():
        v_teacher = merged(velocities.teacher, taught)
        v_fake = merged(velocities.fake, matched)

    losses: dict[str, Tensor] = {}
    if recipe.ca:
        losses["ca"] = ca_loss(
            v_student["on"],
            v_teacher["ca"],
            v_teacher["ca_uncond"],
            inputs["on"].x,
            seen["ca"].x,
            inputs["on"].sigma,
            seen["ca"].sigma,
            recipe.alpha,
            recipe.floor,
        )
    for name, level in matched.items():
        source = "on" if name == "dm" else "off"
        losses[name] = dm_loss(
            v_student[source],
            v_teacher[name],
            v_fake[name],
            inputs[source].x,
            level.x,
            inputs[source].sigma,
            level.sigma,
            recipe.floor,
        )
    return losses


def _noise_like(x: Tensor, generator: Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device)
