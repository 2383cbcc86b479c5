"""Stable Diffusion 3 and 3.5: ``SD3Transformer2DModel`` behind two CLIPs and an optional T5."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor, nn

from distill.adapters.adapter import Condition
from distill.errors import DistillError

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

# With one of these the scheduler resamples the whole grid, so a single sigma has no shift.
_GRID_OPTIONS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "shift_terminal",
    "invert_sigmas",
)


class Sd3Adapter:
    """Mirrors ``diffusers.StableDiffusion3Pipeline``: same inputs, same numbers.

    Args:
        pipeline: the pipeline whose components are used as they are.
        max_sequence_length: T5 tokens; without a T5, the zero rows the pipeline appends (0: none).

    Raises:
        DistillError: the scheduler is no flow-matching scheduler with a shift per sigma.
    """

    name = "sd3"

    def __init__(self, pipeline: StableDiffusion3Pipeline, max_sequence_length: int = 256) -> None:
        config = pipeline.scheduler.config
        if not hasattr(pipeline.scheduler, "time_shift") or any(map(config.get, _GRID_OPTIONS)):
            raise DistillError(
                f"the teacher's scheduler {type(pipeline.scheduler).__name__} does not shift each "
                "sigma by itself; expected FlowMatchEulerDiscreteScheduler with "
                f"{', '.join(_GRID_OPTIONS)} off: change scheduler/scheduler_config.json"
            )
        self.pipeline = pipeline
        self.max_sequence_length = max_sequence_length

    @property
    def transformer(self) -> nn.Module:
        """The pipeline's velocity network."""
        transformer: nn.Module = self.pipeline.transformer
        return transformer

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """The prompts' embeddings as ``encode_prompt`` makes them; ``""`` is the null condition."""
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Condition(prompt_embeds, pooled)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents, for a size in pixels.

        Raises:
            DistillError: the size is no multiple of what the VAE and the patches divide it by.
        """
        downscale = self.pipeline.vae_scale_factor
        multiple = downscale * self.pipeline.patch_size
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise DistillError(
                f"size {width}x{height}: width and height must be positive multiples of {multiple}"
            )
        channels: int = self.pipeline.transformer.config.in_channels
        return channels, height // downscale, width // downscale

    def sigmas(self, steps: int, height: int, width: int) -> list[float]:
        """The shifted Euler grid of ``steps`` even steps: ``steps + 1`` values from 1.0 to 0.0."""
        even = torch.tensor([1.0 - i / steps for i in range(steps)])
        return [*self.shift(even, height, width).tolist(), 0.0]

    def shift(self, sigmas: Tensor, height: int, width: int) -> Tensor:
        """The scheduler's own shift of each sigma, any shape, as the pipeline would apply it."""
        scheduler = copy.copy(self.pipeline.scheduler)  # set_timesteps only rebinds attributes
        mu = self._dynamic_shift(height, width) if scheduler.config.use_dynamic_shifting else None
        scheduler.set_timesteps(sigmas=sigmas.flatten().tolist(), mu=mu)
        shifted: Tensor = scheduler.sigmas[:-1]
        return shifted.reshape(sigmas.shape).to(sigmas)

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity eps - x0 at noise level sigma.

        Args:
            model: the transformer or a network of its architecture.
            x: noisy latents (B, C, h, w).
            sigma: (B,) in [0, 1]; 1 is noise.
            condition: B rows.
        """
        velocity: Tensor = model(
            hidden_states=x,
            timestep=sigma * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=condition.prompt_embeds,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]
        return velocity

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), nominally in [-1, 1], not clamped."""
        vae = self.pipeline.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        pictures: Tensor = vae.decode(scaled, return_dict=False)[0]
        return pictures.float()

    def _dynamic_shift(self, height: int, width: int) -> float:
        _, h, w = self.latent_shape(height, width)
        config = self.pipeline.scheduler.config
        mu: float = calculate_shift(
            (h // self.pipeline.patch_size) * (w // self.pipeline.patch_size),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16),
        )
        return mu
