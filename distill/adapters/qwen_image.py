"""Qwen-Image: ``QwenImageTransformer2DModel`` behind a Qwen2.5-VL and a VAE made for video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from distill.adapters.adapter import Adapter
from distill.adapters.condition import Condition
from distill.adapters.language import without_logits
from distill.adapters.packing import PATCH, pack, unpack
from distill.errors import DistillError

_LONGEST_TEXT = 1024


class QwenImageAdapter(Adapter):
    """Mirrors ``diffusers.QwenImagePipeline``.

    Text is padded to one length and the padding masked, where the pipeline pads to the longest
    prompt of its batch; what is masked has no part in a picture.

    Args:
        pipeline: the pipeline whose components are used as they are.
        max_sequence_length: text tokens, 1024 at most; 512 unless given.

    Raises:
        DistillError: a longer text, a transformer for edits or layers, or a scheduler that
            ``Adapter`` refuses.
    """

    name = "qwen-image"
    plain_latents = False
    half = torch.bfloat16  # Qwen's activations leave float16's range

    def __init__(self, pipeline: Any, max_sequence_length: int | None = None) -> None:
        config = pipeline.transformer.config
        length = 512 if max_sequence_length is None else max_sequence_length
        if not 1 <= length <= _LONGEST_TEXT:
            raise DistillError(
                f"max_sequence_length = {length}: Qwen-Image reads 1 to {_LONGEST_TEXT} text tokens"
            )
        if config.zero_cond_t or config.use_additional_t_cond or config.use_layer3d_rope:
            raise DistillError(
                "the transformer is of Qwen-Image-Edit or -Layered, which need pictures as input; "
                "expected Qwen-Image"
            )
        # The pipeline warns of a guidance scale, and takes 4 for guidance by a second pass.
        options = {"max_sequence_length": length, "guidance_scale": None, "true_cfg_scale": 1.0}
        super().__init__(pipeline, PATCH, config.in_channels // PATCH**2, length, options)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """``prompt_embeds`` (B, T, D), zero where ``prompt_mask`` (B, T) is, in int64."""
        encoder = self.pipeline.text_encoder
        with without_logits(encoder):
            embeds, mask = self.pipeline.encode_prompt(
                prompts,
                device=encoder.device,  # else the transformer's
                max_sequence_length=self.max_sequence_length,
            )
        if mask is None:  # no prompt has padding
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        missing = self.max_sequence_length - embeds.shape[1]
        padded = {
            "prompt_embeds": pad(embeds, (0, 0, 0, missing)),
            "prompt_mask": pad(mask, (0, missing)),
        }
        return Condition(padded)

    def empty_condition(self, rows: int) -> Condition:
        """As ``encode`` has it."""
        shape = rows, self.max_sequence_length
        width = self.pipeline.transformer.config.joint_attention_dim
        mask = torch.empty(shape, dtype=torch.int64)
        return Condition({"prompt_embeds": torch.empty(*shape, width), "prompt_mask": mask})

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Of latents that are not packed."""
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        velocity: Tensor = model(
            hidden_states=pack(x),
            timestep=self._unit_timestep(sigma, x),
            encoder_hidden_states=condition.tensors["prompt_embeds"],
            encoder_hidden_states_mask=condition.tensors["prompt_mask"],
            img_shapes=[[(1, rows, columns)]],
            attention_kwargs={},
            return_dict=False,
        )[0]
        return unpack(velocity, rows, columns)

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """Guidance, then every image token brought to its length in ``with_prompt``."""
        tokens = pack(super().guided(with_prompt, without, scale))
        lengths = [v.norm(dim=-1, keepdim=True) for v in (pack(with_prompt), tokens)]
        tokens = tokens * (lengths[0] / lengths[1])
        return unpack(tokens, with_prompt.shape[2] // PATCH, with_prompt.shape[3] // PATCH)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W): a video of one frame."""
        vae = self.pipeline.vae
        mean, inverse = self._statistics(latents.device)
        scaled = latents.to(vae.dtype) / inverse + mean
        pictures: Tensor = vae.decode(scaled[:, :, None], return_dict=False)[0][:, :, 0]
        return pictures.float()

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> the latents (B, C, h, w) that ``decode`` turns back."""
        vae = self.pipeline.vae
        mode = vae.encode(pictures.to(vae.dtype)[:, :, None]).latent_dist.mode()[:, :, 0]
        mean, inverse = self._statistics(pictures.device)
        latents: Tensor = ((mode - mean) * inverse).float()
        return latents

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and inverse deviation of the latents, (1, C, 1, 1) each, in the VAE's type."""
        vae = self.pipeline.vae
        mean, deviation = (
            torch.tensor(each, device=device).view(1, -1, 1, 1).to(vae.dtype)
            for each in (vae.config.latents_mean, vae.config.latents_std)
        )
        return mean, 1.0 / deviation
