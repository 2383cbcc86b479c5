"""CDM's iteration (arXiv 2605.06376)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.adapters import Adapter, Condition
from distill.critic import AnchorEmbedding, FakeTeacher, text, told
from distill.errors import DistillError
from distill.flow import Anchors, Point, Velocity, euler, rollout
from distill.networks import (
    Average,
    Optimiser,
    add_lora,
    attention_kernel,
    blocks,
    move_towards,
    outline,
    ramped_decay,
    weights_of,
)
from distill.objective import Velocities, fake_loss, student_losses
from distill.parallel import Processes
from distill.recipe import MAY_CHANGE, Recipe
from distill.rng import Draws, Level, Rng

if TYPE_CHECKING:
    from distill.prompts import PromptStream

Batch = list[tuple[Anchors, Draws]]
"""The parts that are taken through the networks one after the other."""


class Trainer:
    """Student, fake teacher and their average, and everything that decides the next update.

    Args:
        adapter: the teacher's; its own networks stay as and where they are.
        recipe: the run.
        prompts: the condition of every sample of the run.
        null: the empty prompt's embedding, one row.
        processes: those that train together.
        weights: the transformer's by name, to be read one at a time; without all of them it is
            read itself.

    Raises:
        DistillError: the recipe does not fit the processes.
    """

    def __init__(
        self,
        adapter: Adapter,
        recipe: Recipe,
        prompts: PromptStream,
        null: Condition,
        processes: Processes,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        if processes.sharded and recipe.schedule.index != "shared":
            raise DistillError(
                "recipe key schedule.index must be 'shared' with FSDP: sharded networks are "
                "gathered by all processes at once, so all must stop at the same anchor"
            )
        self.adapter, self.recipe, self.processes = adapter, recipe, processes
        self.device = processes.device
        self.prompts, self.null = prompts, null.to(self.device)
        self.latent_shape = adapter.latent_shape(recipe.height, recipe.width)
        self.rows = processes.rows(recipe.batch, recipe.runtime.accumulate)
        self.rng = Rng(recipe, self.latent_shape, self._shift, self.rows, self.device)
        self.updates = 0

        # float32 masters: bfloat16 would lose updates of 1e-5.
        self.student = self._trainable()
        self.fake = FakeTeacher(self._trainable(), adapter, self._embedding())
        self.teacher = outline(adapter.transformer, low=recipe.runtime.precision == "bf16")
        networks = [self.student, self.fake.transformer, self.teacher]
        if recipe.runtime.compile:
            for block in (block for network in networks for block in blocks(network)):
                # Rollouts shrink from sample to sample unless all stop at the same anchor.
                block.compile(dynamic=recipe.schedule.index != "shared")
        own = adapter.transformer.state_dict()
        if weights is None or not own.keys() <= weights.keys():
            weights = own
        for network in (self.student, self.fake, self.teacher):
            processes.place(network, weights)
        self.average = Average(self.student)
        self.velocities = Velocities(
            student=self._velocity_of(self.student),
            teacher=self._velocity_of(self.teacher),
            fake=self._velocity_of(self.fake),
        )
        plan, updates = recipe.optimiser, recipe.updates
        self.student_optimiser = Optimiser(self.student, plan, plan.student_rate, updates)
        iterations = updates * recipe.fake_updates
        self.fake_optimiser = Optimiser(self.fake, plan, plan.fake_rate, iterations)

    @property
    def identity(self) -> dict[str, Any]:
        """What a continuation must have in common with this run."""
        recipe = {k: v for k, v in asdict(self.recipe).items() if k not in MAY_CHANGE}
        return {**recipe, "prompts' SHA-256": self.prompts.sha256}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the student is its moving average."""
        with self.average.applied():
            yield

    def update(self) -> dict[str, Tensor]:
        """One student update and the fake-teacher updates that belong to it.

        Returns:
            Losses, gradient norms and the latents' mean and standard deviation over this process's
            samples: scalars on the device, not waited for.
        """
        count = self.recipe.fake_updates
        for iteration in range(self.updates * count, (self.updates + 1) * count):
            last = (iteration + 1) % count == 0
            batch = self._roll_out(iteration, student=last)
            metrics = self._update_fake(batch, iteration)
        metrics |= self._update_student(batch)
        matched = [metrics[name] for name in ("dm", "cdm") if name in metrics]
        if matched:  # root mean square of R - F, over R's mean distance from the student's picture
            metrics["gap"] = torch.stack(matched).mean().sqrt()
        self.updates += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on; the prompts' position follows from ``updates``.

        The tensors are the trainer's own, sharded where the networks are.
        """
        return {
            "updates": self.updates,
            **self._learnt(),
            "student_optimiser": self.student_optimiser.state_dict(),
            "fake_optimiser": self.fake_optimiser.state_dict(),
            "rng": self.rng.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self.updates = state["updates"]
        for name, values in self._learnt().items():
            for key, value in values.items():
                value.copy_(state[name][key])
        self.student_optimiser.load_state_dict(state["student_optimiser"])
        self.fake_optimiser.load_state_dict(state["fake_optimiser"])
        self.rng.load_state_dict(state["rng"])

    def _learnt(self) -> dict[str, dict[str, Tensor]]:
        student, fake = weights_of(self.student), weights_of(self.fake)
        return {"student": student, "fake": fake, "average": self.average.values}

    def _trainable(self) -> nn.Module:
        network = outline(self.adapter.transformer)
        if self.recipe.lora.rank:
            add_lora(network, self.recipe.lora, self.recipe.seed)
        else:
            network.requires_grad_(True)
        if self.recipe.runtime.gradient_checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        return network

    def _embedding(self) -> AnchorEmbedding | None:
        if not self.recipe.critic.anchor:
            return None
        width = self.null.tensors[text(self.null.tensors)].shape[-1]
        return AnchorEmbedding(width, self.recipe.seed)

    def _velocity_of(self, network: nn.Module) -> Velocity:
        """``v(x, sigma, condition)`` of a network, in the recipe's precision."""
        device, low = self.device.type, self.recipe.runtime.precision == "bf16"

        def velocity(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            attention = attention_kernel(device) if torch.is_grad_enabled() else nullcontext()
            # A context a call: autocast's cache of cast weights must not outlive an update.
            with torch.autocast(device, torch.bfloat16, enabled=low), attention:
                if isinstance(network, FakeTeacher):
                    answer: Tensor = network(x, sigma, condition)
                    return answer
                return self.adapter.velocity(network, x, sigma, condition)

        return velocity

    def _shift(self, sigmas: Tensor) -> Tensor:
        return self.adapter.shift(sigmas, self.recipe.height, self.recipe.width)

    def _next_prompts(self, iteration: int) -> Condition:
        start = iteration * self.recipe.batch
        samples = range(start + self.rows.start, start + self.rows.stop)
        return self.prompts.at(samples).to(self.device)

    def _roll_out(self, iteration: int, student: bool) -> Batch:
        """The student's way to an anchor for each of the next samples, in parts of the batch."""
        condition, draws = self._next_prompts(iteration), self.rng.iteration(student)
        count = self.recipe.runtime.accumulate
        size = len(draws) // count
        # The forward at the anchor, with its gradient, is half of the student's pass; but the
        # graphs of several parts would have to live through the fake teacher's update.
        graded = student and count == 1 and self.recipe.loss.on_trajectory
        parts = [slice(i * size, (i + 1) * size) for i in range(count)]
        return [(self._anchors(draws[i], condition[i], graded), draws[i]) for i in parts]

    def _anchors(self, draws: Draws, condition: Condition, graded: bool) -> Anchors:
        """Each sample's state where its rollout stops, and the student's velocity there."""
        student = self.velocities.student
        x = rollout(student, draws.noise, draws.schedule, draws.index, condition)
        with torch.set_grad_enabled(graded):
            return Anchors(x, draws.sigma, condition, student(x, draws.sigma, condition))

    def _off_trajectory(self, anchors: Anchors, level: Level) -> Point:
        """CDM's input: carried along the student's own velocity to another level."""
        x = euler(anchors.x, anchors.velocity.detach(), anchors.sigma, level.sigma)
        return Point(x, level.sigma, anchors.condition)

    def _update_fake(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        x0 = [anchors.x0(anchors.velocity.detach()) for anchors, _ in batch]
        losses = []
        for i, (anchors, draws) in enumerate(batch):
            condition = told(anchors.condition, anchors.sigma)
            losses.append(fake_loss(self.velocities.fake, x0[i], condition, draws.fake))
            self._backward(losses[-1], self.fake, i, len(batch))
        norm = self.fake_optimiser.step(iteration)
        follower = weights_of(self.fake.transformer)
        move_towards(follower, weights_of(self.student), self.recipe.fake_pull)
        whole = torch.cat(x0)
        return {
            "fake": torch.stack(losses).detach().mean(),
            "fake_gradient": norm,
            "latent_mean": whole.mean(),
            "latent_std": whole.std(),
        }

    def _update_student(self, batch: Batch) -> dict[str, Tensor]:
        weights = self.recipe.loss
        parts: list[dict[str, Tensor]] = []
        for i, (anchors, draws) in enumerate(batch):
            off = None if draws.off is None else self._off_trajectory(anchors, draws.off)
            losses = student_losses(self.velocities, anchors, off, self.null, weights, draws)
            weighted = [getattr(weights, name) * loss for name, loss in losses.items()]
            self._backward(torch.stack(weighted).sum(), self.student, i, len(batch))
            parts.append({name: loss.detach() for name, loss in losses.items()})
        norm = self.student_optimiser.step(self.updates)
        self.average.update(ramped_decay(self.updates, self.recipe.ema))
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return means | {"gradient": norm}

    def _backward(self, loss: Tensor, network: nn.Module, part: int, parts: int) -> None:
        """Add one part's gradient; after the last one it is the mean over parts and processes."""
        last = part == parts - 1
        self.processes.exchange_gradients(network, last)
        with attention_kernel(self.device.type):  # checkpointed blocks run forward once more
            (loss / parts).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if last:
            self.processes.average_gradients(network)
