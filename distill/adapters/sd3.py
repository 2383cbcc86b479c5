"""Stable Diffusion 3 and 3.5: ``SD3Transformer2DModel`` behind two CLIPs and an optional T5."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.adapters.adapter import Adapter
from distill.adapters.condition import Condition


class Sd3Adapter(Adapter):
    """Mirrors ``diffusers.StableDiffusion3Pipeline``: same inputs, same numbers.

    Args:
        pipeline: the pipeline whose components are used as they are.
        max_sequence_length: T5 tokens; without a T5, the zero rows the pipeline appends (0: none).
            As many as diffusers itself takes where it is not given.
    """

    name = "sd3"
    half = torch.float16
    optional = frozenset({"text_encoder_3", "tokenizer_3"})
    text_encoders: ClassVar[dict[str, str]] = {
        "text_encoder": "clip_l",
        "text_encoder_2": "clip_g",
        "text_encoder_3": "t5xxl",
    }
    scheduler_grid = True

    def __init__(self, pipeline: Any, max_sequence_length: int | None = None) -> None:
        config = pipeline.transformer.config
        length = 256 if max_sequence_length is None else max_sequence_length
        options = {"max_sequence_length": length}
        super().__init__(pipeline, config.patch_size, config.in_channels, length, options)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """``prompt_embeds`` (B, T, D), CLIP's tokens and T5's behind them; ``pooled`` (B, P)."""
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.pipeline.text_encoder.device,  # else the transformer's
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Condition({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def empty_condition(self, rows: int) -> Condition:
        """As ``encode`` has it."""
        config = self.pipeline.transformer.config
        tokens = self.pipeline.tokenizer_max_length + self.max_sequence_length
        return Condition(
            {
                "prompt_embeds": torch.empty(rows, tokens, config.joint_attention_dim),
                "pooled": torch.empty(rows, config.pooled_projection_dim),
            }
        )

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Without packing; timesteps in float32."""
        velocity: Tensor = model(
            hidden_states=x,
            timestep=sigma * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=condition.tensors["prompt_embeds"],
            pooled_projections=condition.tensors["pooled"],
            return_dict=False,
        )[0]
        return velocity
