"""Pictures of a run under way: always the same prompts and the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.adapters import Condition
from distill.flow import Velocity, sample
from distill.trainer import Trainer


class FixedSamples:
    """Samples of the first prompts, each with a seed of its own; prompts repeat if they are few.

    Every process of the training makes them all alike: its networks may be sharded.

    Args:
        trainer: the run.
        count: of samples.
    """

    def __init__(self, trainer: Trainer, count: int) -> None:
        self.trainer = trainer
        prompts = trainer.prompts.prompts
        self.prompts = [prompts[i % len(prompts)] for i in range(count)]
        # Each has its own seed, so that one is the same in a grid of any size.
        self.noise = torch.stack(
            [
                torch.randn(trainer.latent_shape, generator=torch.Generator().manual_seed(seed))
                for seed in range(count)
            ]
        )
        self.condition = trainer.prompts.encode(self.prompts)

    def student(self, steps: int) -> Tensor:
        """The averaged student's latents in so many steps, float32 (B, C, h, w)."""
        with self.trainer.averaged():
            return self._sample(self.trainer.velocities.student, steps)

    def teacher(self, steps: int, guidance: float) -> Tensor:
        """The teacher's latents under classifier-free guidance, float32 (B, C, h, w)."""
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
        return torch.cat(latents)


def pictures_of(trainer: Trainer, latents: Tensor) -> Tensor:
    """Decoded latents, (B, 3, H, W) in [0, 1] on the CPU.

    The VAE is on the device for this time only, and decodes one picture at a time.
    """
    vae = trainer.adapter.pipeline.vae.to(trainer.device)
    decoded = [trainer.adapter.decode(one.to(trainer.device)).cpu() for one in latents[:, None]]
    vae.to("cpu")
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)
