"""All random numbers of an iteration, drawn before anything is computed with them.

They are drawn for the whole batch from generators that every process holds alike, and each process
keeps its own rows: a run on eight processes sees the samples that a run on one would see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.recipe import Recipe
from distill.schedule import (
    Shift,
    dynamic_schedule,
    fixed_schedule,
    uniform_index,
    uniform_sigmas,
)


@dataclass(frozen=True)
class Level:
    """Where a network looks at a clean picture: a noise level and a noise for each sample."""

    sigma: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)

    def __getitem__(self, rows: slice) -> Level:
        return Level(self.sigma[rows], self.noise[rows])


@dataclass(frozen=True)
class Draws:
    """One iteration's, for B samples; ``schedule`` and ``index`` stay on the CPU."""

    schedule: Tensor  # (N,), descending from 1.0
    index: Tensor  # (B,) in 1..N, where each sample's rollout stops
    sigma: Tensor  # (B,), the schedule at the index
    noise: Tensor  # (B, C, h, w), where the rollout starts
    fake: Level  # the fake teacher's regression
    teachers: dict[str, Level]  # what the teachers see for "ca", "dm" and "cdm"
    off: Level | None  # CDM's input off the trajectory

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(
            schedule=self.schedule,
            index=self.index[rows],
            sigma=self.sigma[rows],
            noise=self.noise[rows],
            fake=self.fake[rows],
            teachers={name: level[rows] for name, level in self.teachers.items()},
            off=None if self.off is None else self.off[rows],
        )


class Rng:
    """Draws iteration after iteration.

    Args:
        recipe: what is drawn.
        latent_shape: (C, h, w).
        shift: the scheduler's, of unshifted sigmas.
        rows: this process's part of the batch.
        device: of noises and levels.
    """

    def __init__(
        self,
        recipe: Recipe,
        latent_shape: tuple[int, int, int],
        shift: Shift,
        rows: slice,
        device: torch.device,
    ) -> None:
        self.recipe, self.latent_shape, self.shift = recipe, latent_shape, shift
        self.rows, self.device = rows, device
        # The host's decides batch sizes and must not wait for a device; the other draws noise.
        self.host = torch.Generator().manual_seed(recipe.seed)
        self.generator = torch.Generator(device).manual_seed(recipe.seed + 1)

    def iteration(self, student: bool) -> Draws:
        """The next iteration's draws; those of the student's losses only if it is updated."""
        batch, loss = self.recipe.batch, self.recipe.loss
        schedule = self._schedule()
        shared = self.recipe.schedule.index == "shared"
        index = uniform_index(len(schedule), batch, self.host, shared)
        sigma = schedule[index - 1].to(self.device)
        noise = self._noise()
        fake = self._level()
        teachers: dict[str, Level] = {}
        off = None
        if student:
            for name, weight in {"ca": loss.ca, "dm": loss.dm, "cdm": loss.cdm}.items():
                if weight:
                    teachers[name] = self._level(cap=sigma if name == "ca" else None)
            if loss.cdm:
                off = self._level()
        rows = self.rows
        return Draws(schedule, index[rows], sigma[rows], noise, fake, teachers, off)

    def state_dict(self) -> dict[str, Tensor]:
        """Both generators' states."""
        return {"host": self.host.get_state(), "device": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was."""
        self.host.set_state(state["host"])
        self.generator.set_state(state["device"])

    def _level(self, cap: Tensor | None = None) -> Level:
        sigma = uniform_sigmas(self.recipe.batch, self.generator, cap)
        return Level(sigma[self.rows], self._noise())

    def _noise(self) -> Tensor:
        shape = (self.recipe.batch, *self.latent_shape)
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        return noise[self.rows].clone()  # so that the other processes' rows are freed

    def _schedule(self) -> Tensor:
        recipe = self.recipe.schedule
        if recipe.kind == "fixed":
            return fixed_schedule(self.recipe.steps, self.shift)
        return dynamic_schedule(
            recipe.n_max,
            recipe.low,
            recipe.high,
            self.shift,
            self.host,
            stratified=recipe.anchors == "stratified",
        )
