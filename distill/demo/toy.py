"""CDM (arXiv 2605.06376) in two dimensions: ``python -m distill.demo.toy --out toy.png``.

The teacher is exact: three prompts, each a mixture of Gaussians, whose velocity has a closed form
at every noise level. Student and fake teacher are that velocity plus a small network that starts
at zero. The trainer is the one that trains on pictures; ``ToyAdapter`` is all it asks for.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Generator, Tensor, nn

from distill.adapters import Adapter, Condition
from distill.demo.figure import new_figure, save_figure
from distill.errors import DistillError
from distill.flow import Velocity, per_sample, sample
from distill.parallel import Processes
from distill.prompts import PromptStream
from distill.recipe import (
    CriticRecipe,
    LossRecipe,
    OptimiserRecipe,
    Recipe,
    RuntimeRecipe,
    ScheduleRecipe,
)
from distill.trainer import Trainer

PROMPTS = ["red", "blue", "green"]
STEPS = 4
ALPHA = 1.0
WIDTH = 9  # of the text
# Weights of CA, DM and CDM.
LOSSES = {
    "CA": (1.0, 0.0, 0.0),
    "DM": (0.0, 1.0, 0.0),
    "CA + DM": (1.0, 1.0, 0.0),
    "CA + DM + CDM": (1.0, 1.0, 1.0),
}


def encode(prompts: Sequence[str]) -> Condition:
    """Each prompt as its weight of every class, (B, 3); the empty one is all classes alike."""
    one_of = torch.tensor([[float(p in ("", name)) for name in PROMPTS] for p in prompts])
    weights = one_of / one_of.sum(1, keepdim=True)
    # The networks read the text, which the fake teacher's is told more in; the teacher is exact.
    return Condition({"text": weights.repeat(1, WIDTH // 3), "classes": weights})


def everyone(each: int) -> Condition:
    """``each`` rows of every prompt in turn."""
    return encode([prompt for prompt in PROMPTS for _ in range(each)])


@dataclass(frozen=True)
class Mixture:
    """Gaussians; a class weighs them, and a prompt weighs the classes."""

    means: Tensor  # (K, 2)
    stds: Tensor  # (K,)
    weights: Tensor  # (3, K)

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """``E[eps - x0 | x]`` (B, 2): ``x = (1 - sigma) * x0 + sigma * eps`` is again a mixture."""
        s = per_sample(sigma, x)[..., None]  # (B, 1, 1)
        keep, variances = 1 - s, self.stds.square()[:, None]
        spread = keep**2 * variances + s**2
        offset = x[:, None] - keep * self.means  # (B, K, 2)
        exponent = -offset.square().sum(-1, keepdim=True) / (2 * spread) - spread.log()
        posterior = (self._of(condition)[..., None].log() + exponent).softmax(1)
        each = offset * (s - keep * variances) / spread - self.means
        return (posterior * each).sum(1)

    def guided(self, scale: float) -> Velocity:
        """The velocity with classifier-free guidance."""

        def velocity(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            unguided = self.velocity(x, sigma, encode([""] * len(x)))
            return unguided + scale * (self.velocity(x, sigma, condition) - unguided)

        return velocity

    def draw(self, condition: Condition, generator: Generator) -> Tensor:
        """Exact samples (B, 2)."""
        which = self._of(condition).multinomial(1, generator=generator).squeeze(1)
        noise = torch.randn(len(which), 2, generator=generator)
        return self.means[which] + self.stds[which, None] * noise

    def _of(self, condition: Condition) -> Tensor:
        return condition.tensors["classes"] @ self.weights


def example() -> Mixture:
    """Each class has two narrow blobs of its own; one wide blob in the middle is everybody's."""
    angle = torch.arange(3) * 2 * math.pi / 3 + math.pi / 2
    outward = torch.stack([angle.cos(), angle.sin()], 1)
    along = torch.stack([-angle.sin(), angle.cos()], 1)
    own = 0.35 * torch.eye(3)
    return Mixture(
        means=torch.cat([outward + 0.6 * along, outward - 0.6 * along, torch.zeros(1, 2)]),
        stds=torch.tensor([0.2] * 6 + [0.5]),
        weights=torch.cat([own, own, torch.full((3, 1), 0.3)], 1),
    )


class Network(nn.Module):
    """The teacher's velocity and a correction, which is zero at first."""

    def __init__(self, teacher: Mixture, width: int = 64) -> None:
        super().__init__()
        self.teacher = teacher
        inside = [nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        first, last = nn.Linear(2 + 5 + WIDTH, width), nn.Linear(width, 2)
        self.correction = nn.Sequential(first, nn.SiLU(), *inside, last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, 2)."""
        phase = math.pi * sigma[:, None] * torch.tensor([1.0, 2.0])
        features = [x, sigma[:, None], phase.sin(), phase.cos(), condition.tensors["text"]]
        correction: Tensor = self.correction(torch.cat(features, 1))
        return self.teacher.velocity(x, sigma, condition) + correction


class ToyAdapter(Adapter):
    """What the trainer asks of an architecture: latents are points, sigmas are not shifted."""

    def __init__(self, teacher: Mixture) -> None:
        self.pipeline = SimpleNamespace(transformer=Network(teacher), components={})

    def encode(self, prompts: list[str]) -> Condition:
        """One row a prompt."""
        return encode(prompts)

    def empty_condition(self, rows: int) -> Condition:
        """Of the same shape."""
        return encode([""] * rows)

    def latent_shape(self, height: int, width: int) -> tuple[int]:  # type: ignore[override]
        """A point's."""
        return (2,)

    def shift(self, sigmas: Tensor, height: int, width: int) -> Tensor:
        """As they are."""
        return sigmas

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, 2) without guidance."""
        velocity: Tensor = model(x, sigma, condition)
        return velocity


def recipe(
    losses: str, alpha: float = ALPHA, updates: int = 300, seed: int = 0, anchor: bool = True
) -> Recipe:
    """A run with a set of ``LOSSES``; ``anchor``: whether the fake teacher is told it."""
    ca, dm, cdm = LOSSES[losses]
    return Recipe(
        teacher="",
        output="",
        prompts="",
        height=1,
        width=1,
        updates=updates,
        batch=256,
        ema=0.99,
        seed=seed,
        schedule=ScheduleRecipe(n_max=STEPS, anchors="stratified", low=0.02, high=0.98),
        loss=LossRecipe(ca=ca, dm=dm, cdm=cdm, alpha=alpha),
        critic=CriticRecipe(anchor=anchor),
        optimiser=OptimiserRecipe(student_rate=5e-4, fake_rate=3e-3, warmup=0),
        runtime=RuntimeRecipe(device="cpu", precision="fp32"),
    )


def train(teacher: Mixture, run: Recipe) -> Trainer:
    """The trainer after the recipe's updates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        adapter = ToyAdapter(teacher)
    prompts = PromptStream(adapter, PROMPTS, run.seed, len(PROMPTS))
    trainer = Trainer(adapter, run, prompts, encode([""]), Processes("cpu"))
    for _ in range(run.updates):
        trainer.update()
    return trainer


def points(velocity: Velocity, steps: int, condition: Condition, seed: int) -> Tensor:
    """Euler's ODE from noise on the even grid; (B, 2)."""
    noise = torch.randn(len(condition), 2, generator=Generator().manual_seed(seed))
    return sample(velocity, noise, torch.linspace(1, 0, steps + 1).tolist(), condition)


def student_points(trainer: Trainer, steps: int, condition: Condition, seed: int) -> Tensor:
    """The averaged student's, (B, 2)."""
    with trainer.averaged():
        return points(trainer.velocities.student, steps, condition, seed)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` (Szekely and Rizzo), the mean over the prompts.

    Args:
        a: samples of ``everyone``, (3 n, 2).
        b: the same of another distribution, with its own n.
    """
    total = 0.0
    for own, other in zip(a.chunk(3), b.chunk(3), strict=True):
        total += 2 * torch.cdist(own, other).mean().item()
        total -= torch.pdist(own).mean().item() + torch.pdist(other).mean().item()
    return total / 3


def save_panels(panels: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Write titled points, (3 n, 2) each, side by side as a PNG.

    Raises:
        DistillError: it cannot be written, or there is no matplotlib.
    """
    figure = new_figure(2.6 * len(panels), 3.1)
    for axes, (title, all_points) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for prompt, own in zip(PROMPTS, all_points.chunk(3), strict=True):
            axes.scatter(*own.T.numpy(), s=1.5, color=f"tab:{prompt}")
        # What runs away is drawn at its own scale, which its ticks show.
        extent = max(2.2, 1.05 * all_points.abs().quantile(0.995).item())
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=6)
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Train with each set of losses, print the distances, draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m distill.demo.toy", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("toy.png"))
    parser.add_argument("--alpha", type=float, default=ALPHA)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    scale, teacher, condition = 1 + options.alpha, example(), everyone(1000)
    unguided = teacher.draw(condition, Generator().manual_seed(1))
    guided = points(teacher.guided(scale), 200, condition, seed=1)
    panels: list[tuple[str, Tensor]] = []

    def panel(title: str, drawn: Tensor) -> None:
        plain, wanted = (energy_distance(drawn, target) for target in (unguided, guided))
        note = f"to unguided {plain:.3f}, to guided {wanted:.3f}"
        print(f"{title:28} {note}")
        panels.append((f"{title}\n{note}", drawn))

    panel("teacher", points(teacher.velocity, 200, condition, seed=2))
    panel(f"teacher, guidance {scale:g}", points(teacher.guided(scale), 200, condition, seed=2))
    runs = {f"{losses}, {STEPS} steps": (losses, True) for losses in LOSSES}
    runs["CA + DM + CDM, anchor not told"] = ("CA + DM + CDM", False)
    for title, (losses, anchor) in runs.items():
        run = recipe(losses, options.alpha, options.updates, options.seed, anchor)
        panel(title, student_points(train(teacher, run), STEPS, condition, seed=2))
    try:
        save_panels(panels, options.out)
    except DistillError as error:
        print(f"distill.demo.toy: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
