"""CDM's iteration (arXiv 2605.06376)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.adapters import Adapter, Condition
from distill.errors import DistillError
from distill.flow import Anchors, Velocity, rollout
from distill.networks import (
    Average,
    adamw,
    adamw_step,
    add_lora,
    blocks,
    move_towards,
    ramped_decay,
    trained,
)
from distill.objective import Velocities, fake_loss, student_losses
from distill.parallel import Processes
from distill.recipe import Recipe
from distill.rng import Draws, Rng

if TYPE_CHECKING:
    from distill.prompts import PromptStream


class Trainer:
    """Student, fake teacher and their average, and everything that decides the next update.

    Args:
        adapter: the teacher's; its transformer is frozen and moved to the device.
        recipe: the run.
        prompts: the condition of every sample of the run.
        null: the empty prompt's embedding, one row.
        processes: those that train together.

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

        teacher = adapter.transformer.eval().requires_grad_(False)
        # float32 masters: bfloat16 would lose updates of 1e-5.
        self.student = self._trainable(teacher)
        self.fake = self._trainable(teacher)
        networks = [self.student, self.fake, teacher]
        if recipe.runtime.compile:
            for block in (block for network in networks for block in blocks(network)):
                # Rollouts shrink from sample to sample unless all stop at the same anchor.
                block.compile(dynamic=recipe.schedule.index != "shared")
        for network in networks:
            processes.place(network)
        self.average = Average(self.student)
        self.velocities = Velocities(
            student=self._velocity_of(self.student),
            teacher=self._velocity_of(teacher),
            fake=self._velocity_of(self.fake),
        )
        self.student_optimiser = adamw(self.student, recipe.optimiser)
        self.fake_optimiser = adamw(self.fake, recipe.optimiser)

    @property
    def identity(self) -> dict[str, Any]:
        """What a continuation must have in common with this run."""
        return {"recipe": asdict(self.recipe), "prompts": self.prompts.sha256}

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
        for part in range(self.recipe.fake_updates):
            iteration = self.updates * self.recipe.fake_updates + part
            last = part == self.recipe.fake_updates - 1
            condition = self._next_prompts(iteration)
            draws = self.rng.iteration(student=last)
            cut = [(draws[rows], condition[rows]) for rows in self._parts()]
            # The forward at the anchor, with its gradient, is half of the student's pass; but the
            # graphs of several parts would have to live through the fake teacher's update.
            graded = last and len(cut) == 1 and self.recipe.loss.on_trajectory
            anchors = [self._anchors(*part, graded) for part in cut]
            metrics = self._update_fake(anchors, cut, iteration)
        metrics |= self._update_student(anchors, cut)
        self.updates += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on; the prompts' position follows from ``updates``.

        The tensors are the trainer's own, sharded where the networks are.
        """
        return {
            "updates": self.updates,
            "student": _values(self.student),
            "fake": _values(self.fake),
            "average": self.average.values,
            "student_optimiser": get_optimizer_state_dict(self.student, self.student_optimiser),
            "fake_optimiser": get_optimizer_state_dict(self.fake, self.fake_optimiser),
            "rng": self.rng.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self.updates = state["updates"]
        for name, values in (
            ("student", _values(self.student)),
            ("fake", _values(self.fake)),
            ("average", self.average.values),
        ):
            for key, value in values.items():
                value.copy_(state[name][key])
        for network, optimiser, key in (
            (self.student, self.student_optimiser, "student_optimiser"),
            (self.fake, self.fake_optimiser, "fake_optimiser"),
        ):
            set_optimizer_state_dict(network, optimiser, state[key])
        self.rng.load_state_dict(state["rng"])

    def _trainable(self, teacher: nn.Module) -> nn.Module:
        network = copy.deepcopy(teacher).float()
        if self.recipe.lora.rank:
            add_lora(network, self.recipe.lora, self.recipe.seed)
        else:
            network.requires_grad_(True)
        if self.recipe.runtime.gradient_checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        return network

    def _velocity_of(self, network: nn.Module) -> Velocity:
        """``v(x, sigma, condition)`` of a network, in the recipe's precision."""
        low = self.recipe.runtime.precision == "bf16"

        def velocity(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            with ExitStack() as contexts:
                # A context a call: autocast's cache of cast weights must not outlive an update.
                contexts.enter_context(
                    torch.autocast(self.device.type, torch.bfloat16, enabled=low)
                )
                if torch.is_grad_enabled():
                    contexts.enter_context(self._attention())
                return self.adapter.velocity(network, x, sigma, condition)

        return velocity

    def _attention(self) -> AbstractContextManager[None]:
        """The kernel for trained passes: on a CPU matmul and softmax, 18 % faster at 64 tokens."""
        if self.device.type == "cpu":
            attention: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
            return attention
        return nullcontext()

    def _shift(self, sigmas: Tensor) -> Tensor:
        return self.adapter.shift(sigmas, self.recipe.height, self.recipe.width)

    def _next_prompts(self, iteration: int) -> Condition:
        start = iteration * self.recipe.batch
        samples = range(start + self.rows.start, start + self.rows.stop)
        return self.prompts.at(samples).to(self.device)

    def _parts(self) -> list[slice]:
        count = self.recipe.runtime.accumulate
        size = (self.rows.stop - self.rows.start) // count
        return [slice(i * size, (i + 1) * size) for i in range(count)]

    def _anchors(self, draws: Draws, condition: Condition, graded: bool) -> Anchors:
        """The student's way to an anchor for each sample, and its velocity there."""
        student = self.velocities.student
        x = rollout(student, draws.noise, draws.schedule, draws.index, condition)
        with torch.set_grad_enabled(graded):
            return Anchors(x, draws.sigma, student(x, draws.sigma, condition))

    def _update_fake(
        self, anchors: list[Anchors], cut: list[tuple[Draws, Condition]], iteration: int
    ) -> dict[str, Tensor]:
        recipe = self.recipe.optimiser
        x0 = [at.x0 for at in anchors]
        losses = []
        for i, (draws, condition) in enumerate(cut):
            losses.append(fake_loss(self.velocities.fake, x0[i], condition, draws.fake))
            self._backward(losses[-1], self.fake, i, len(cut))
        norm = adamw_step(self.fake_optimiser, recipe.fake_rate, iteration, recipe)
        targets = list(_values(self.student).values())
        move_towards(list(_values(self.fake).values()), targets, self.recipe.fake_pull)
        whole = torch.cat(x0)
        return {
            "fake": torch.stack(losses).detach().mean(),
            "fake_gradient": norm,
            "latent_mean": whole.mean(),
            "latent_std": whole.std(),
        }

    def _update_student(
        self, anchors: list[Anchors], cut: list[tuple[Draws, Condition]]
    ) -> dict[str, Tensor]:
        weights, recipe = self.recipe.loss, self.recipe.optimiser
        parts: list[dict[str, Tensor]] = []
        for i, (draws, condition) in enumerate(cut):
            losses = student_losses(
                self.velocities, anchors[i], condition, self.null, weights, draws
            )
            weighted = [getattr(weights, name) * loss for name, loss in losses.items()]
            self._backward(torch.stack(weighted).sum(), self.student, i, len(cut))
            parts.append({name: loss.detach() for name, loss in losses.items()})
        norm = adamw_step(self.student_optimiser, recipe.student_rate, self.updates, recipe)
        self.average.update(ramped_decay(self.updates, self.recipe.ema))
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return means | {"gradient": norm}

    def _backward(self, loss: Tensor, network: nn.Module, part: int, parts: int) -> None:
        """Add one part's gradient; after the last one it is the mean over parts and processes."""
        last = part == parts - 1
        self.processes.exchange_gradients(network, last)
        with self._attention():  # checkpointed blocks run forward once more
            (loss / parts).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if last:
            self.processes.average_gradients(network)


def _values(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in trained(network).items()}
