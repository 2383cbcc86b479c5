"""Pictures of the student under way: always the same prompts and the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.sampling import sample
from distill.trainer import Trainer


def preview_pictures(trainer: Trainer) -> Tensor:
    """The averaged student's pictures of the first prompts, (B, 3, H, W) in [0, 1]."""
    adapter, recipe = trainer.adapter, trainer.recipe
    prompts = trainer.prompts.prompts[: recipe.log.preview_pictures]
    # Each picture has its own seed, so that one is the same in a grid of any size.
    noise = torch.stack(
        [
            torch.randn(trainer.latent_shape, generator=torch.Generator().manual_seed(seed))
            for seed in range(len(prompts))
        ]
    ).to(trainer.device)
    with trainer.averaged():
        latents = sample(
            trainer.velocities.student,
            noise,
            adapter.sigmas(recipe.steps, recipe.height, recipe.width),
            trainer.prompts.encode(prompts).to(trainer.device),
        )
    adapter.pipeline.vae.to(trainer.device)
    return (adapter.decode(latents) / 2 + 0.5).clamp(0, 1).cpu()
