"""CDM's iteration laid out as in the authors' released code, for comparison with ours.

The same mathematics on the same draws, networks, optimisers and averages: what ``Trainer`` saves is
done here as released. Every sample's rollout goes all N steps, without gradient; CA, DM and CDM
each take a forward of the student of their own; the teacher is asked with and without the prompt in
two calls, and each network is called once for each loss.
"""

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.critic import told
from distill.flow import Anchors, Point, euler, noised
from distill.losses import ca_loss, dm_loss
from distill.networks import ramped_decay
from distill.rng import Draws
from distill.trainer import Batch, Trainer


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
        return Anchors(at, draws.sigma, condition, velocity)

    def _update_student(self, batch: Batch) -> dict[str, Tensor]:
        ((at, draws),) = batch  # accumulation is refused as released
        assert draws.off is not None
        losses = {
            "ca": self._ca(at, draws),
            "dm": self._dm("dm", at, draws),
            "cdm": self._dm("cdm", self._off_trajectory(at, draws.off), draws),
        }
        self._backward(torch.stack(list(losses.values())).sum(), self.student, 0, 1)
        norm = self.student_optimiser.step(self.updates)
        self.average.update(ramped_decay(self.updates, self.recipe.ema))
        return {name: loss.detach() for name, loss in losses.items()} | {"gradient": norm}

    def _ca(self, at: Point, draws: Draws) -> Tensor:
        v = self.velocities.student(at.x, at.sigma, at.condition)
        seen, recipe = self._seen("ca", at, v, draws), self.recipe.loss
        with torch.no_grad():
            v_cond = self.velocities.teacher(seen.x, seen.sigma, seen.condition)
            v_uncond = self.velocities.teacher(seen.x, seen.sigma, self.null.expand(len(draws)))
        return ca_loss(at.x0(v), seen.x0(v_cond), seen.x0(v_uncond), recipe.alpha, recipe.floor)

    def _dm(self, name: str, at: Point, draws: Draws) -> Tensor:
        v = self.velocities.student(at.x, at.sigma, at.condition)
        seen = self._seen(name, at, v, draws)
        with torch.no_grad():
            v_cond = self.velocities.teacher(seen.x, seen.sigma, seen.condition)
            v_fake = self.velocities.fake(seen.x, seen.sigma, told(at.condition, at.sigma))
        return dm_loss(at.x0(v), seen.x0(v_cond), seen.x0(v_fake), self.recipe.loss.floor)

    def _seen(self, name: str, at: Point, velocity: Tensor, draws: Draws) -> Point:
        level = draws.teachers[name]
        x = noised(at.x0(velocity.detach()), level.sigma, level.noise)
        return Point(x, level.sigma, at.condition)
