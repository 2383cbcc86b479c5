"""What each network is trained on, given the points where the student's rollout stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.critic import told
from distill.flow import Anchors, Point, Velocity, merged, noised
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
    """Flow matching on the student's own pictures ``x0`` (B, C, h, w), at one level each.

    ``condition`` is ``told`` their anchors.
    """
    velocity = fake(noised(x0, level.sigma, level.noise), level.sigma, condition)
    return flow_matching_loss(velocity, x0, level.noise)


def student_losses(
    velocities: Velocities,
    anchors: Anchors,
    off: Point | None,
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
        anchors: the rollout's points, where CA and DM take the student.
        off: where CDM does; None without it.
        null: the empty prompt, one row.
        recipe: weights, alpha and floor.
        draws: of the same B samples.
    """
    at: dict[str, Point] = {}
    if recipe.on_trajectory:
        at["on"] = anchors
    if off is not None:
        at["off"] = off
    v = {"on": anchors.velocity} if anchors.velocity.requires_grad else {}
    v |= merged(velocities.student, {name: p for name, p in at.items() if name not in v})

    # The teachers look at the student's pictures under fresh noise.
    seen: dict[str, Point] = {}
    for name, level in draws.teachers.items():
        place = "off" if name == "cdm" else "on"
        x0 = at[place].x0(v[place].detach())
        seen[name] = Point(noised(x0, level.sigma, level.noise), level.sigma, at[place].condition)
    asked = dict(seen)
    if "ca" in seen:
        asked["uncond"] = replace(seen["ca"], condition=null.expand(len(draws)))
    judged = {
        name: replace(point, condition=told(point.condition, at[place].sigma))
        for name, place in (("dm", "on"), ("cdm", "off"))
        if (point := seen.get(name))
    }
    with torch.no_grad():
        v_teacher = merged(velocities.teacher, asked)
        v_fake = merged(velocities.fake, judged)
    teacher = {name: point.x0(v_teacher[name]) for name, point in asked.items()}

    losses: dict[str, Tensor] = {}
    if "ca" in seen:
        x0 = anchors.x0(v["on"])
        losses["ca"] = ca_loss(x0, teacher["ca"], teacher["uncond"], recipe.alpha, recipe.floor)
    for name in v_fake:
        place = "off" if name == "cdm" else "on"
        fake = seen[name].x0(v_fake[name])
        losses[name] = dm_loss(at[place].x0(v[place]), teacher[name], fake, recipe.floor)
    return losses
