"""Pictures of a run under way: always the same prompts and the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.flow import Velocity, sample
from distill.networks import moved
from distill.trainer import Trainer


class FixedSamples:
    """Samples of the first prompts, each with a seed of its own; prompts repeat if they are few.

    Every process of the training makes its part of them.

    Args:
        trainer: the run.
        count: of samples.
    """

    def __init__(self, trainer: Trainer, count: int) -> None:
        self.trainer, self.count = trainer, count
        prompts, rows = trainer.prompts.prompts, trainer.processes.share(count)
        self.prompts = [prompts[i % len(prompts)] for i in range(count)]
        # Each has its own seed, so that one is the same in a grid of any size.
        self.noise = torch.stack(
            [
                torch.randn(trainer.latent_shape, generator=torch.Generator().manual_seed(seed))
                for seed in rows
            ]
        )
        self.condition = trainer.prompts.encode([self.prompts[i] for i in rows])

    def student(self, steps: int) -> Tensor:
        """The averaged student's latents in so many steps, float32 (B, C, h, w) on the CPU."""
        with self.trainer.averaged():
            return self._sample(self.trainer.velocities.student, steps)

    def teacher(self, steps: int, guidance: float) -> Tensor:
        """The teacher's latents under classifier-free guidance, float32 (B, C, h, w) on the CPU."""
        teacher, null = self.trainer.velocities.teacher, self.trainer.null

        def guided(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            both = Condition.cat([condition, null.expand(len(x))])
            with_prompt, without = teacher(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
            return self.trainer.adapter.guided(with_prompt, without, guidance)

        return self._sample(guided, steps)

    def _sample(self, velocity: Velocity, steps: int) -> Tensor:
        trainer, recipe = self.trainer, self.trainer.recipe
        sigmas = trainer.adapter.sigmas(steps, recipe.height, recipe.width)
        # As many at a time as an update holds.
        size = (trainer.rows.stop - trainer.rows.start) // recipe.runtime.accumulate
        latents = [
            sample(
                velocity,
                self.noise[start : start + size].to(trainer.device),
                sigmas,
                self.condition[start : start + size].to(trainer.device),
            )
            for start in range(0, len(self.noise), size)
        ]
        return trainer.processes.gather(torch.cat(latents), self.count)


def pictures_of(trainer: Trainer, latents: Tensor) -> Tensor:
    """Decoded latents, (B, 3, H, W) in [0, 1] on the CPU.

    Every process decodes its part, one picture at a time; the VAE is on the device for this time
    only.
    """
    adapter, processes = trainer.adapter, trainer.processes
    mine = latents[processes.share(len(latents)), None]
    with moved([adapter.pipeline.vae], trainer.device):
        decoded = torch.cat([adapter.decode(one.to(trainer.device)).cpu() for one in mine])
    return (processes.gather(decoded, len(latents)) / 2 + 0.5).clamp(0, 1)
