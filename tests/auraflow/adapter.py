"""AuraFlow: ``AuraFlowTransformer2DModel`` behind a UMT5."""

from typing import Any

import torch
from torch import Tensor, nn

from distill.adapters import Adapter, Condition


class AuraFlowAdapter(Adapter):
    """Mirrors ``diffusers.AuraFlowPipeline``."""

    name = "auraflow"
    half = torch.bfloat16
    scheduler_grid = True

    def __init__(self, pipeline: Any, max_sequence_length: int | None = None) -> None:
        config = pipeline.transformer.config
        length = 256 if max_sequence_length is None else max_sequence_length
        options = {"max_sequence_length": length}
        super().__init__(pipeline, config.patch_size, config.in_channels, length, options)

    @property
    def default_side(self) -> int:
        """The pipeline has no ``default_sample_size``."""
        return int(self.pipeline.transformer.config.sample_size * self.pipeline.vae_scale_factor)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """``text`` (B, T, D), zero where padding is."""
        embeds, *_ = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.pipeline.text_encoder.device,
            max_sequence_length=self.max_sequence_length,
        )
        return Condition({"text": embeds})

    def empty_condition(self, rows: int) -> Condition:
        """As ``encode`` has it."""
        width = self.pipeline.transformer.config.joint_attention_dim
        return Condition({"text": torch.empty(rows, self.max_sequence_length, width)})

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Timesteps are the sigmas themselves, in the type of the latents."""
        velocity: Tensor = model(
            hidden_states=x,
            encoder_hidden_states=condition.tensors["text"],
            timestep=sigma.to(x.dtype),
            return_dict=False,
        )[0]
        return velocity
