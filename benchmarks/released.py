"""CDM's iteration laid out as in the authors' released code, for comparison with ours.

The same mathematics on the same draws, networks, optimisers and averages: what ``Trainer`` saves is
done here as released. Every sample's rollout goes all N steps, without gradient; CA, DM and CDM
each take a forward of the student of their own; the teacher is asked with and without the prompt in
two calls, and each network is called once for each loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.flow import Anchors, euler, noised, predicted_x0
from distill.losses import ca_loss, dm_loss
from distill.networks import adamw_step, ramped_decay
from distill.rng import Draws
from distill.trainer import Trainer


class ReleasedTrainer(Trainer):
    """Ours but for the rollout and the student's losses."""

    @torch.no_grad()
    def _anchors(self, draws: Draws, condition: Condition, graded: bool) -> Anchors:
        x, schedule = draws.noise, draws.schedule.to(self.device)
        index = draws.index.to(self.device)[:, None, None, None]
        at, velocity = torch.empty_like(x), torch.empty_like(x)
        for step in range(1, len(schedule) + 1):
            sigma = schedule[step - 1].expand(len(x))
            v = self.velocities.student(x, sigma, condition).float()
            at, velocity = (
                torch.where(index == step, x, at),
                torch.where(index == step, v, velocity),
            )
            if step < len(schedule):
                x = euler(x, v, sigma, schedule[step].expand(len(x)))
        return Anchors(at, draws.sigma, velocity)

    def _update_student(
        self, anchors: list[Anchors], cut: list[tuple[Draws, Condition]]
    ) -> dict[str, Tensor]:
        ((at,), ((draws, condition),)) = anchors, cut  # accumulation is refused as released
        losses = {
            "ca": self._ca(at, condition, draws),
            "dm": self._dm("dm", at.x, at.sigma, condition, draws),
            "cdm": self._cdm(at, condition, draws),
        }
        self._backward(torch.stack(list(losses.values())).sum(), self.student, 0, 1)
        recipe = self.recipe.optimiser
        norm = adamw_step(self.student_optimiser, recipe.student_rate, self.updates, recipe)
        self.average.update(ramped_decay(self.updates, self.recipe.ema))
        return {name: loss.detach() for name, loss in losses.items()} | {"gradient": norm}

    def _ca(self, at: Anchors, condition: Condition, draws: Draws) -> Tensor:
        v = self.velocities.student(at.x, at.sigma, condition)
        level, recipe = draws.teachers["ca"], self.recipe.loss
        seen = noised(predicted_x0(at.x, at.sigma, v.detach()), level.sigma, level.noise)
        with torch.no_grad():
            v_cond = self.velocities.teacher(seen, level.sigma, condition)
            null = self.null.expand(len(draws))
            v_uncond = self.velocities.teacher(seen, level.sigma, null)
        return ca_loss(
            v, v_cond, v_uncond, at.x, seen, at.sigma, level.sigma, recipe.alpha, recipe.floor
        )

    def _cdm(self, at: Anchors, condition: Condition, draws: Draws) -> Tensor:
        assert draws.off is not None
        sigma = draws.off.sigma
        return self._dm("cdm", euler(at.x, at.velocity, at.sigma, sigma), sigma, condition, draws)

    def _dm(
        self, name: str, x: Tensor, sigma: Tensor, condition: Condition, draws: Draws
    ) -> Tensor:
        v = self.velocities.student(x, sigma, condition)
        level = draws.teachers[name]
        seen = noised(predicted_x0(x, sigma, v.detach()), level.sigma, level.noise)
        with torch.no_grad():
            v_cond = self.velocities.teacher(seen, level.sigma, condition)
            v_fake = self.velocities.fake(seen, level.sigma, condition)
        return dm_loss(v, v_cond, v_fake, x, seen, sigma, level.sigma, self.recipe.loss.floor)
