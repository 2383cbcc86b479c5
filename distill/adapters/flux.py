"""FLUX.1: ``FluxTransformer2DModel`` behind a CLIP's pooled text and a T5."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.adapters.adapter import Adapter
from distill.adapters.condition import Condition
from distill.adapters.packing import PATCH, grid_ids, pack, unpack
from distill.errors import DistillError

_LONGEST_TEXT = 512


class FluxAdapter(Adapter):
    """Mirrors ``diffusers.FluxPipeline`` without true guidance.

    With a guidance embedding (FLUX.1-dev and what is distilled from it) ``guidance_scale`` is one
    more input of the network; without one (schnell) the network does not see it.

    Args:
        pipeline: the pipeline whose components are used as they are.
        max_sequence_length: T5 tokens, 512 at most; unless given as many as Black Forest Labs'
            own code takes, 256 without a guidance embedding and 512 with one.

    Raises:
        DistillError: a longer text, or a scheduler that ``Adapter`` refuses.
    """

    name = "flux"
    half = torch.bfloat16  # activations of the blocks leave float16's range
    ignored = frozenset({"image_encoder", "feature_extractor"})  # of IP adapters
    text_encoders: ClassVar[dict[str, str]] = {
        "text_encoder": "clip_l",
        "text_encoder_2": "t5xxl",
    }

    def __init__(self, pipeline: Any, max_sequence_length: int | None = None) -> None:
        config = pipeline.transformer.config
        length = max_sequence_length
        if length is None:
            length = _LONGEST_TEXT if config.guidance_embeds else 256
        if not 1 <= length <= _LONGEST_TEXT:
            raise DistillError(
                f"max_sequence_length = {length}: FLUX.1 reads 1 to {_LONGEST_TEXT} text tokens"
            )
        options = {"max_sequence_length": length}
        super().__init__(pipeline, PATCH, config.in_channels // PATCH**2, length, options)
        self.guidance_embedding = bool(config.guidance_embeds)
        self.guidance_scale = 3.5 if config.guidance_embeds else 1.0  # diffusers' own

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """T5's ``prompt_embeds`` (B, T, D), padding included; CLIP's ``pooled`` (B, P)."""
        prompt_embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            device=self.pipeline.text_encoder.device,  # else the transformer's
            max_sequence_length=self.max_sequence_length,
        )
        return Condition({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def empty_condition(self, rows: int) -> Condition:
        """As ``encode`` has it."""
        config = self.pipeline.transformer.config
        shape = rows, self.max_sequence_length, config.joint_attention_dim
        pooled = torch.empty(rows, config.pooled_projection_dim)
        return Condition({"prompt_embeds": torch.empty(shape), "pooled": pooled})

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Of latents that are not packed."""
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        prompt_embeds = condition.tensors["prompt_embeds"]
        row, column = grid_ids(rows, columns, x.device)
        velocity: Tensor = model(
            hidden_states=pack(x),
            timestep=self._unit_timestep(sigma, x),
            guidance=torch.full_like(sigma, self.guidance_scale)
            if self.guidance_embedding
            else None,
            pooled_projections=condition.tensors["pooled"],
            encoder_hidden_states=prompt_embeds,
            txt_ids=row.new_zeros(prompt_embeds.shape[1], 3),
            img_ids=torch.stack([torch.zeros_like(row), row, column], dim=-1),
            return_dict=False,
        )[0]
        return unpack(velocity, rows, columns)
