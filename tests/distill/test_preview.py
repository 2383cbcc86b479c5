"""The sampler and the preview against diffusers' pipeline."""

from collections.abc import Callable

import torch
from pipelines import PROMPTS

from distill.adapters import Adapter
from distill.flow import sample
from distill.preview import FixedSamples, pictures_of
from distill.recipe import Recipe
from distill.trainer import Trainer


def pipeline_pictures(adapter: Adapter, seeds: int) -> torch.Tensor:
    adapter.pipeline.set_progress_bar_config(disable=True)
    pictures: torch.Tensor = adapter.pipeline(
        PROMPTS[:seeds],
        generator=[torch.Generator().manual_seed(seed) for seed in range(seeds)],
        num_inference_steps=4,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=0,
        output_type="pt",
    ).images
    return pictures


def test_the_sampler_is_the_pipelines(adapter: Adapter) -> None:
    noise = torch.cat(
        [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    )
    latents = sample(
        lambda x, sigma, c: adapter.velocity(adapter.transformer, x, sigma, c),
        noise,
        adapter.sigmas(4, 64, 64),
        adapter.encode(PROMPTS[:3]),
    )
    pictures = (adapter.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pictures, pipeline_pictures(adapter, 3), rtol=0, atol=1e-5)


def test_a_fresh_students_preview_is_the_teachers_unguided_picture(
    make: Callable[..., Trainer], adapter: Adapter, recipe: Recipe
) -> None:
    trainer = make(recipe)
    pictures = pictures_of(trainer, FixedSamples(trainer, 3).student(4))
    torch.testing.assert_close(pictures, pipeline_pictures(adapter, 3), rtol=0, atol=1e-5)
