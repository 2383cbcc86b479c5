"""Stable Diffusion 3 and 3.5: ``SD3Transformer2DModel`` behind two CLIPs and an optional T5."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.adapters.adapter import Condition
from distill.adapters.flow_matching import FlowMatchingAdapter

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline


class Sd3Adapter(FlowMatchingAdapter):
    """Mirrors ``diffusers.StableDiffusion3Pipeline``: same inputs, same numbers.

    Args:
        pipeline: the pipeline whose components are used as they are.
        max_sequence_length: T5 tokens; without a T5, the zero rows the pipeline appends (0: none).
            As many as diffusers itself takes where it is not given.

    Raises:
        DistillError: the scheduler takes no Euler steps over sigmas shifted one by one.
    """

    name = "sd3"

    def __init__(
        self, pipeline: StableDiffusion3Pipeline, max_sequence_length: int | None = None
    ) -> None:
        config = pipeline.transformer.config
        super().__init__(pipeline, config.patch_size, config.in_channels)
        self.max_sequence_length = 256 if max_sequence_length is None else max_sequence_length

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """The prompts' embeddings as ``encode_prompt`` makes them; ``""`` is the null condition."""
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.pipeline.text_encoder.device,  # else the transformer's
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Condition(prompt_embeds, pooled)

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity eps - x0 at noise level sigma, without guidance.

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
