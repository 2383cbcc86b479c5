"""CDM's iteration (arXiv 2605.06376), on one device."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill import optimiser as adam
from distill.adapters import Condition, Sd3Adapter
from distill.ema import averaged_copy, move_towards, ramped_decay
from distill.errors import DistillError
from distill.objective import Velocities, fake_loss, student_losses
from distill.prompts import rows_at
from distill.recipe import Recipe
from distill.rollout import Anchors, Velocity, rollout
from distill.schedule import dynamic_schedule, fixed_schedule, uniform_index


class Trainer:
    """Student, fake teacher and their average, and everything that decides the next update.

    Args:
        adapter: the teacher's; its transformer is frozen and moved to the recipe's device.
        recipe: the run.
        prompts: all prompts' embeddings, a row each; they stay where they are.
        null: the empty prompt's embedding, one row.
    """

    def __init__(
        self, adapter: Sd3Adapter, recipe: Recipe, prompts: Condition, null: Condition
    ) -> None:
        self.adapter, self.recipe = adapter, recipe
        self.device = choose_device(recipe.runtime.device)
        self.prompts, self.null = prompts, null.to(self.device)
        self.latent_shape = adapter.latent_shape(recipe.height, recipe.width)
        self.updates = 0

        teacher = adapter.transformer.to(self.device).eval().requires_grad_(False)
        # float32 masters: bfloat16 would lose updates of 1e-5.
        self.student = copy.deepcopy(teacher).float().requires_grad_(True)
        self.fake = copy.deepcopy(self.student)
        self.average = averaged_copy(self.student)
        self.velocities = Velocities(
            student=self.velocity_of(self.student),
            teacher=self.velocity_of(teacher),
            fake=self.velocity_of(self.fake),
        )
        self.student_optimiser = adam.adamw(self.student, recipe.optimiser)
        self.fake_optimiser = adam.adamw(self.fake, recipe.optimiser)
        # The host's decides batch sizes and must not wait for a device; the other draws noise.
        self.host_generator = torch.Generator().manual_seed(recipe.seed)
        self.generator = torch.Generator(self.device).manual_seed(recipe.seed + 1)

    def velocity_of(self, network: nn.Module) -> Velocity:
        """``v(x, sigma, condition)`` of a network, in the recipe's precision."""
        low = self.recipe.runtime.precision == "bf16"
        on_cpu = self.device.type == "cpu"

        def velocity(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            with ExitStack() as contexts:
                # A context a call: autocast's cache of cast weights must not outlive an update.
                contexts.enter_context(
                    torch.autocast(self.device.type, torch.bfloat16, enabled=low)
                )
                if on_cpu and torch.is_grad_enabled():
                    # Plain matmul and softmax: a trained pass is 18 % faster at 64 image tokens.
                    contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
                return self.adapter.velocity(network, x, sigma, condition)

        return velocity

    def update(self) -> dict[str, Tensor]:
        """One student update and the fake-teacher updates that belong to it.

        Returns:
            Losses, gradient norms and the latents' mean and standard deviation: scalars on the
            device, not waited for.
        """
        for part in range(self.recipe.fake_updates):
            iteration = self.updates * self.recipe.fake_updates + part
            condition = self._next_prompts(iteration)
            anchors = self._rollout(condition)
            metrics = self._update_fake(anchors, condition, iteration)
        metrics |= self._update_student(anchors, condition)
        self.updates += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on; the prompts' position follows from ``updates``."""
        return {
            "updates": self.updates,
            "student": self.student.state_dict(),
            "fake": self.fake.state_dict(),
            "average": self.average.state_dict(),
            "student_optimiser": self.student_optimiser.state_dict(),
            "fake_optimiser": self.fake_optimiser.state_dict(),
            "host_generator": self.host_generator.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self.updates = state["updates"]
        self.student.load_state_dict(state["student"])
        self.fake.load_state_dict(state["fake"])
        self.average.load_state_dict(state["average"])
        self.student_optimiser.load_state_dict(state["student_optimiser"])
        self.fake_optimiser.load_state_dict(state["fake_optimiser"])
        self.host_generator.set_state(state["host_generator"])
        self.generator.set_state(state["generator"])

    def _next_prompts(self, iteration: int) -> Condition:
        batch = self.recipe.batch
        rows = rows_at(iteration * batch, batch, len(self.prompts), self.recipe.seed)
        return self.prompts[rows].to(self.device)

    def _rollout(self, condition: Condition) -> Anchors:
        """A new schedule, and the student's way along it to an anchor for each sample."""
        schedule = self._schedule()
        index = uniform_index(len(schedule), len(condition), self.host_generator)
        noise = torch.randn(
            len(condition), *self.latent_shape, generator=self.generator, device=self.device
        )
        return rollout(self.velocities.student, noise, schedule, index, condition)

    def _schedule(self) -> Tensor:
        recipe = self.recipe.schedule

        def shift(sigmas: Tensor) -> Tensor:
            return self.adapter.shift(sigmas, self.recipe.height, self.recipe.width)

        if recipe.kind == "fixed":
            return fixed_schedule(self.recipe.steps, shift)
        return dynamic_schedule(
            recipe.n_max,
            recipe.low,
            recipe.high,
            shift,
            self.host_generator,
            stratified=recipe.anchors == "stratified",
        )

    def _update_fake(
        self, anchors: Anchors, condition: Condition, iteration: int
    ) -> dict[str, Tensor]:
        recipe, x0 = self.recipe.optimiser, anchors.x0
        loss = fake_loss(self.velocities.fake, x0, condition, self.generator)
        norm = adam.step(loss, self.fake, self.fake_optimiser, recipe.fake_rate, iteration, recipe)
        move_towards(self.fake, self.student, self.recipe.fake_pull)
        return {
            "fake": loss.detach(),
            "fake_gradient": norm,
            "latent_mean": x0.mean(),
            "latent_std": x0.std(),
        }

    def _update_student(self, anchors: Anchors, condition: Condition) -> dict[str, Tensor]:
        weights, recipe = self.recipe.loss, self.recipe.optimiser
        losses = student_losses(
            self.velocities, anchors, condition, self.null, weights, self.generator
        )
        total = torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
        norm = adam.step(
            total, self.student, self.student_optimiser, recipe.student_rate, self.updates, recipe
        )
        decay = ramped_decay(self.updates, self.recipe.ema)
        move_towards(self.average, self.student, 1 - decay)
        return {name: loss.detach() for name, loss in losses.items()} | {"gradient": norm}


def choose_device(name: str) -> torch.device:
    """The device a recipe names; ``auto`` is CUDA where there is one.

    Raises:
        DistillError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise DistillError(f"recipe key runtime.device: no device {name} here; use auto") from error
    return device
