"""What all pipelines with a flow-matching Euler scheduler and a KL autoencoder have alike."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor, nn

from distill.errors import DistillError

# With one of these the scheduler resamples the whole grid, or does not step along the velocity.
_OTHER_SAMPLERS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "shift_terminal",
    "invert_sigmas",
    "stochastic_sampling",
)


class FlowMatchingAdapter:
    """The part of an adapter that does not depend on the transformer.

    Args:
        pipeline: the diffusers pipeline whose components are used as they are.
        patch_size: latent pixels a side of an image token.
        latent_channels: channels of the latents.

    Raises:
        DistillError: the scheduler takes no Euler steps over sigmas shifted one by one.
    """

    def __init__(self, pipeline: Any, patch_size: int, latent_channels: int) -> None:
        scheduler = pipeline.scheduler
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or any(
            map(scheduler.config.get, _OTHER_SAMPLERS)
        ):
            raise DistillError(
                f"the scheduler {type(scheduler).__name__} is not flow matching by plain Euler "
                "steps; expected FlowMatchEulerDiscreteScheduler with "
                f"{', '.join(_OTHER_SAMPLERS)} off: change scheduler/scheduler_config.json"
            )
        self.pipeline = pipeline
        self._patch_size = patch_size
        self._latent_channels = latent_channels

    @property
    def transformer(self) -> nn.Module:
        """The pipeline's velocity network."""
        transformer: nn.Module = self.pipeline.transformer
        return transformer

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents, for a size in pixels.

        Raises:
            DistillError: the size is no multiple of what the VAE and the patches divide it by.
        """
        downscale: int = self.pipeline.vae_scale_factor
        multiple = downscale * self._patch_size
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise DistillError(
                f"size {width}x{height}: width and height must be positive multiples of {multiple}"
            )
        return self._latent_channels, height // downscale, width // downscale

    def sigmas(self, steps: int, height: int, width: int) -> list[float]:
        """The shifted Euler grid of ``steps`` even steps: ``steps + 1`` values from 1.0 to 0.0."""
        even = torch.tensor([1.0 - i / steps for i in range(steps)])
        return [*self.shift(even, height, width).tolist(), 0.0]

    def shift(self, sigmas: Tensor, height: int, width: int) -> Tensor:
        """The scheduler's own shift of each sigma, any shape, as the pipeline would apply it."""
        scheduler = copy.copy(self.pipeline.scheduler)  # set_timesteps only rebinds attributes
        with np.errstate(divide="ignore"):  # a dynamic shift finds its 0 for sigma 0 by 1 / 0
            scheduler.set_timesteps(
                sigmas=sigmas.flatten().tolist(), mu=self._dynamic_shift(height, width)
            )
        shifted: Tensor = scheduler.sigmas[:-1]
        return shifted.reshape(sigmas.shape).to(sigmas)

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """The velocity that the pipeline samples along under classifier-free guidance.

        Args:
            with_prompt: ``velocity`` for the prompts, (B, C, h, w).
            without: ``velocity`` for the null condition, at the same points.
            scale: 1 is ``with_prompt``.
        """
        return without + scale * (with_prompt - without)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), nominally in [-1, 1], not clamped."""
        vae = self.pipeline.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        pictures: Tensor = vae.decode(scaled, return_dict=False)[0]
        return pictures.float()

    def _dynamic_shift(self, height: int, width: int) -> float:
        """The exponent ``mu`` for a size; a scheduler of constant shift does not look at it."""
        _, h, w = self.latent_shape(height, width)
        config = self.pipeline.scheduler.config
        mu: float = calculate_shift(
            (h // self._patch_size) * (w // self._patch_size),
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        return mu
