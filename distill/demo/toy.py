"""CDM (arXiv 2605.06376) in two dimensions: ``python -m distill.demo.toy --out toy.png``.

The teacher is exact: three classes ("prompts") of Gaussian mixtures, whose velocity has a closed
form at every noise level. Student and fake teacher are that velocity plus a small network that
starts at zero, so both start as the teacher, as they do in the real method. ``train`` is the whole
method, with the project's own losses, schedule and flow; the networks see ``(x, sigma, classes)``.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from distill.demo.toy_picture import Panel, save_panels
from distill.errors import DistillError
from distill.flow import euler, noised, per_sample, predicted_x0
from distill.losses import ca_loss, dm_loss, flow_matching_loss
from distill.networks import Average, move_towards, ramped_decay
from distill.schedule import dynamic_schedule, uniform_index, uniform_sigmas

CLASSES = 3
STEPS = 4

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``v(x, sigma, classes)``: (B, 2), (B,), weights of the classes (B, CLASSES) -> (B, 2)."""


@dataclass(frozen=True)
class Mixture:
    """Gaussians; a class weighs them, and a prompt weighs the classes (without one, evenly)."""

    means: Tensor  # (K, 2)
    stds: Tensor  # (K,)
    weights: Tensor  # (CLASSES, K)

    def velocity(self, x: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        """``E[eps - x0 | x]``: ``x = (1 - sigma) * x0 + sigma * eps`` is again a mixture."""
        s = per_sample(sigma, x)[..., None]  # (B, 1, 1)
        keep, variances = 1 - s, self.stds.square()[:, None]
        spread = keep**2 * variances + s**2
        offset = x[:, None] - keep * self.means  # (B, K, 2)
        exponent = -offset.square().sum(-1, keepdim=True) / (2 * spread) - spread.log()
        posterior = ((classes @ self.weights)[..., None].log() + exponent).softmax(1)
        each = offset * (s - keep * variances) / spread - self.means
        return (posterior * each).sum(1)

    def guided(self, scale: float) -> Velocity:
        """The velocity with classifier-free guidance."""

        def velocity(x: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
            unguided = self.velocity(x, sigma, nobody(len(x)))
            return unguided + scale * (self.velocity(x, sigma, classes) - unguided)

        return velocity

    def draw(self, classes: Tensor, generator: Generator) -> Tensor:
        """Exact samples (B, 2)."""
        which = (classes @ self.weights).multinomial(1, generator=generator).squeeze(1)
        noise = torch.randn(len(which), 2, generator=generator)
        return self.means[which] + self.stds[which, None] * noise


def example() -> Mixture:
    """Each class has two narrow blobs of its own; one wide blob in the middle is everybody's."""
    angle = torch.arange(CLASSES) * 2 * math.pi / CLASSES + math.pi / 2
    outward = torch.stack([angle.cos(), angle.sin()], 1)
    along = torch.stack([-angle.sin(), angle.cos()], 1)
    own = 0.35 * torch.eye(CLASSES)
    return Mixture(
        means=torch.cat([outward + 0.6 * along, outward - 0.6 * along, torch.zeros(1, 2)]),
        stds=torch.tensor([0.2] * 2 * CLASSES + [0.5]),
        weights=torch.cat([own, own, torch.full((CLASSES, 1), 0.3)], 1),
    )


class Network(nn.Module):
    """The teacher's velocity and a correction, which is zero at first."""

    def __init__(self, teacher: Mixture, width: int = 64) -> None:
        super().__init__()
        self.teacher = teacher
        self.correction = nn.Sequential(
            nn.Linear(2 + 5 + CLASSES, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )
        for parameter in self.correction[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        """The velocity (B, 2)."""
        phase = math.pi * sigma[:, None] * torch.tensor([1.0, 2.0])
        features = [x, sigma[:, None], phase.sin(), phase.cos(), classes]
        correction: Tensor = self.correction(torch.cat(features, 1))
        return self.teacher.velocity(x, sigma, classes) + correction


@dataclass(frozen=True)
class Toy:
    """A run: weights and alpha of the losses, sizes, learning rates."""

    ca: float = 1.0
    dm: float = 1.0
    cdm: float = 1.0
    alpha: float = 0.5
    updates: int = 300
    batch: int = 256
    n_max: int = STEPS
    student_rate: float = 5e-4
    fake_rate: float = 3e-3
    fake_updates: int = 2
    fake_pull: float = 0.001
    ema: float = 0.99
    seed: int = 0


# Weights of CA, DM and CDM.
LOSSES = {
    "CA": (1.0, 0.0, 0.0),
    "DM": (0.0, 1.0, 0.0),
    "CA + DM": (1.0, 1.0, 0.0),
    "CA + DM + CDM": (1.0, 1.0, 1.0),
}


def train(teacher: Mixture, toy: Toy) -> Velocity:
    """CDM: the averaged student."""
    generator = torch.Generator().manual_seed(toy.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(toy.seed)
        student = Network(teacher)
    fake, average = copy.deepcopy(student), Average(student)
    student_optimiser = torch.optim.AdamW(student.parameters(), toy.student_rate)
    fake_optimiser = torch.optim.AdamW(fake.parameters(), toy.fake_rate)

    def noise() -> Tensor:
        return torch.randn(toy.batch, 2, generator=generator)

    for update in range(toy.updates):
        for _ in range(toy.fake_updates):
            # A new schedule, and the student's way along it to an anchor of each sample's own.
            classes = one_of(torch.randint(CLASSES, (toy.batch,), generator=generator))
            schedule = dynamic_schedule(
                toy.n_max, 0.02, 0.98, lambda sigmas: sigmas, generator, stratified=True
            )
            index = uniform_index(len(schedule), toy.batch, generator)
            x, sigma, v = rollout(student, noise(), schedule, index, classes)

            # The fake teacher follows the distribution of the student's clean points.
            x0 = predicted_x0(x, sigma, v)
            level, eps = uniform_sigmas(toy.batch, generator), noise()
            v_fake = fake(noised(x0, level, eps), level, classes)
            step(fake_optimiser, flow_matching_loss(v_fake, x0, eps))
            move_towards(list(fake.parameters()), list(student.parameters()), toy.fake_pull)

        def seen(x0: Tensor, cap: Tensor | None = None) -> tuple[Tensor, Tensor]:
            """What the teachers look at: the student's clean point under fresh noise."""
            level = uniform_sigmas(toy.batch, generator, cap)
            return noised(x0, level, noise()), level

        loss = torch.zeros(())
        v_student = student(x, sigma, classes)
        if toy.ca:  # towards what the class adds to the teacher: guidance
            y, level = seen(x0, cap=sigma)
            v_cond = teacher.velocity(y, level, classes)
            v_uncond = teacher.velocity(y, level, nobody(toy.batch))
            loss = loss + toy.ca * ca_loss(
                v_student, v_cond, v_uncond, x, y, sigma, level, toy.alpha
            )
        if toy.dm:  # from the student's distribution to the teacher's, on the trajectory
            y, level = seen(x0)
            v_cond, v_fake = teacher.velocity(y, level, classes), fake(y, level, classes)
            loss = loss + toy.dm * dm_loss(v_student, v_cond, v_fake, x, y, sigma, level)
        if toy.cdm:  # and off it, at any time that the student's velocity leads to
            off = uniform_sigmas(toy.batch, generator)
            x_off = euler(x, v, sigma, off)
            v_off = student(x_off, off, classes)
            y, level = seen(predicted_x0(x_off, off, v_off.detach()))
            v_cond, v_fake = teacher.velocity(y, level, classes), fake(y, level, classes)
            loss = loss + toy.cdm * dm_loss(v_off, v_cond, v_fake, x_off, y, off, level)
        step(student_optimiser, loss)
        average.update(ramped_decay(update, toy.ema))
    with average.applied():
        return copy.deepcopy(student)


@torch.no_grad()
def rollout(
    velocity: Velocity, x: Tensor, schedule: Tensor, index: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample's state, sigma and velocity at its anchor ``index`` (B,) in 1..N.

    All go the whole way, which in two dimensions costs nothing; ``distill.flow`` is thriftier.
    """
    states, velocities = [], []
    for i, sigma in enumerate(schedule):
        here = sigma.expand(len(x))
        states.append(x)
        velocities.append(velocity(x, here, classes))
        x = euler(x, velocities[-1], here, schedule[min(i + 1, len(schedule) - 1)].expand(len(x)))
    rows = torch.arange(len(x))
    at = index - 1
    return torch.stack(states)[at, rows], schedule[at], torch.stack(velocities)[at, rows]


def step(optimiser: torch.optim.AdamW, loss: Tensor) -> None:
    """Backward, clip to 1.0, update."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()


@torch.no_grad()
def sample(velocity: Velocity, steps: int, classes: Tensor, seed: int) -> Tensor:
    """Euler's ODE from noise on the even grid; (B, 2)."""
    x = torch.randn(len(classes), 2, generator=torch.Generator().manual_seed(seed))
    grid = torch.linspace(1, 0, steps + 1)
    for sigma, next_sigma in pairwise(grid):
        here, there = sigma.expand(len(x)), next_sigma.expand(len(x))
        x = euler(x, velocity(x, here, classes), here, there)
    return x


def one_of(classes: Tensor) -> Tensor:
    """Class numbers (B,) as weights (B, CLASSES)."""
    return nn.functional.one_hot(classes, CLASSES).float()


def nobody(rows: int) -> Tensor:
    """The empty prompt: all classes alike."""
    return torch.full((rows, CLASSES), 1 / CLASSES)


def everyone(each: int) -> Tensor:
    """``each`` rows of every class in turn."""
    return one_of(torch.arange(CLASSES).repeat_interleave(each))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` (Szekely and Rizzo), the mean over the classes.

    Args:
        a: samples of ``everyone``, (CLASSES * n, 2).
        b: the same of another distribution, with its own n.
    """
    total = 0.0
    for own, other in zip(a.chunk(CLASSES), b.chunk(CLASSES), strict=True):
        total += 2 * torch.cdist(own, other).mean().item() - _within(own) - _within(other)
    return total / CLASSES


def _within(points: Tensor) -> float:
    """The mean distance of two different ones."""
    return torch.pdist(points).mean().item()


def main(arguments: list[str] | None = None) -> int:
    """Train with each set of losses, print the distances, draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m distill.demo.toy", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("toy.png"))
    parser.add_argument("--alpha", type=float, default=Toy.alpha)
    parser.add_argument("--updates", type=int, default=Toy.updates)
    parser.add_argument("--seed", type=int, default=Toy.seed)
    options = parser.parse_args(arguments)
    toy = Toy(alpha=options.alpha, updates=options.updates, seed=options.seed)
    teacher, classes = example(), everyone(1000)
    unguided = teacher.draw(classes, torch.Generator().manual_seed(1))
    guided_velocity = teacher.guided(1 + toy.alpha)
    guided = sample(guided_velocity, 200, classes, seed=1)

    def panel(title: str, points: Tensor) -> Panel:
        distances = [energy_distance(points, target) for target in (unguided, guided)]
        note = "to unguided {:.3f}, to guided {:.3f}".format(*distances)
        print(f"{title:28} {note}")
        return Panel(title, note, points)

    panels = [
        panel("teacher", sample(teacher.velocity, 200, classes, seed=2)),
        panel(
            f"teacher, guidance {1 + toy.alpha:g}", sample(guided_velocity, 200, classes, seed=2)
        ),
    ]
    for title, (ca, dm, cdm) in LOSSES.items():
        student = train(teacher, replace(toy, ca=ca, dm=dm, cdm=cdm))
        panels.append(panel(f"{title}, {STEPS} steps", sample(student, STEPS, classes, seed=2)))
    try:
        save_panels(panels, options.out)
    except DistillError as error:
        print(f"distill.demo.toy: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
