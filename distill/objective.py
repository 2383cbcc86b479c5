"""What each network is trained on, given the points where the student's rollout stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.flow import Anchors, Point, Velocity, euler, merged, noised, predicted_x0
from distill.losses import ca_loss, dm_loss, flow_matching_loss
from distill.recipe import LossRecipe
from distill.rng import Draws, Level


@dataclass(frozen=True)
class Velocities:
    """The three networks of CDM."""

    student: Velocity
    teacher: Velocity
    fake: Velocity


def fake_loss(fake: Velocity, x0: Tensor, condition: Condition, level: Level) -> Tensor:
    """Flow matching on the student's own pictures ``x0`` (B, C, h, w), at one level each."""
    velocity = fake(noised(x0, level.sigma, level.noise), level.sigma, condition)
    return flow_matching_loss(velocity, x0, level.noise)


def student_losses(
    velocities: Velocities,
    anchors: Anchors,
    condition: Condition,
    null: Condition,
    recipe: LossRecipe,
    draws: Draws,
) -> dict[str, Tensor]:
    """CA, DM and CDM by name, unweighted scalars; a loss of weight 0 is not computed.

    One pass each: teacher [ca; dm; cdm; ca without the prompt], fake [dm; cdm], student [on; off
    the trajectory]. If ``anchors.velocity`` carries the student's gradient it is the first half of
    the student's pass, which then has the second half alone to do.

    Args:
        velocities: the student's outputs carry gradients, the others' do not.
        anchors: the rollout's points.
        condition: B rows.
        null: the empty prompt, one row.
        recipe: weights, alpha and floor, and where CDM's input lies.
        draws: of the same B samples.
    """
    inputs: dict[str, Point] = {}
    if recipe.on_trajectory:
        inputs["on"] = Point(anchors.x, anchors.sigma, condition)
    if draws.off is not None:
        inputs["off"] = Point(_off(anchors, draws.off, recipe), draws.off.sigma, condition)
    v_student = {"on": anchors.velocity} if anchors.velocity.requires_grad else {}
    missing = {name: point for name, point in inputs.items() if name not in v_student}
    v_student |= merged(velocities.student, missing)
    source = {"ca": "on", "dm": "on", "cdm": "on" if draws.off is None else "off"}

    seen: dict[str, Point] = {}
    for name, level in draws.teachers.items():
        at = inputs[source[name]]
        x0 = predicted_x0(at.x, at.sigma, v_student[source[name]].detach())
        seen[name] = Point(noised(x0, level.sigma, level.noise), level.sigma, condition)
    taught = dict(seen)
    if "ca" in seen:
        taught["ca_uncond"] = replace(seen["ca"], condition=null.expand(len(draws)))
    matched = {name: point for name, point in seen.items() if name != "ca"}
    with torch.no_grad():
        v_teacher = merged(velocities.teacher, taught)
        v_fake = merged(velocities.fake, matched)

    losses: dict[str, Tensor] = {}
    for name, level_point in seen.items():
        at, x, sigma = inputs[source[name]], level_point.x, level_point.sigma
        v = v_student[source[name]]
        if name == "ca":
            unguided, alpha, floor = v_teacher["ca_uncond"], recipe.alpha, recipe.floor
            losses[name] = ca_loss(
                v, v_teacher[name], unguided, at.x, x, at.sigma, sigma, alpha, floor
            )
        else:
            losses[name] = dm_loss(
                v, v_teacher[name], v_fake[name], at.x, x, at.sigma, sigma, recipe.floor
            )
    return losses


def _off(anchors: Anchors, level: Level, recipe: LossRecipe) -> Tensor:
    """CDM's input at ``level``, reached from the anchors."""
    if recipe.off_trajectory == "noise":
        return noised(anchors.x0, level.sigma, level.noise)
    return euler(anchors.x, anchors.velocity.detach(), anchors.sigma, level.sigma)
