"""FLUX.2-klein: ``Flux2Transformer2DModel`` behind several layers of a Qwen3."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from distill.adapters.adapter import Adapter
from distill.adapters.condition import Condition
from distill.adapters.language import check_chat, without_logits
from distill.adapters.packing import grid_ids
from distill.errors import DistillError

_FOLD = 2  # pixels of the VAE's latents a side of one of the transformer's
TEXT_LAYERS = (9, 18, 27)  # of the text encoder; diffusers' own choice


class Flux2KleinAdapter(Adapter):
    """Mirrors ``diffusers.Flux2KleinPipeline`` for text alone.

    Latents are those that the transformer works on: the VAE's, two by two folded into channels and
    brought to mean 0 and variance 1 by the statistics of its batch norm.

    Args:
        pipeline: the pipeline whose components are used as they are.
        max_sequence_length: text tokens, the chat's template included; 512 unless given.

    Raises:
        DistillError: a tokenizer without a chat's template, or a scheduler that ``Adapter``
            refuses.
    """

    name = "flux2-klein"
    plain_latents = False
    half = torch.bfloat16  # Qwen's activations leave float16's range

    def __init__(self, pipeline: Any, max_sequence_length: int | None = None) -> None:
        check_chat(pipeline.tokenizer)
        length = 512 if max_sequence_length is None else max_sequence_length
        options = {"max_sequence_length": length}
        super().__init__(pipeline, 1, pipeline.transformer.config.in_channels, length, options)

    @property
    def downscale(self) -> int:
        """Pixels a side of a folded latent."""
        return int(self.pipeline.vae_scale_factor) * _FOLD

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """``prompt_embeds`` (B, T, 3D): three layers side by side, padding included."""
        encoder = self.pipeline.text_encoder
        with without_logits(encoder):
            prompt_embeds, _ = self.pipeline.encode_prompt(
                prompts,
                device=encoder.device,  # else the transformer's
                max_sequence_length=self.max_sequence_length,
                text_encoder_out_layers=TEXT_LAYERS,
            )
        return Condition({"prompt_embeds": prompt_embeds})

    def empty_condition(self, rows: int) -> Condition:
        """As ``encode`` has it."""
        width = self.pipeline.transformer.config.joint_attention_dim
        return Condition({"prompt_embeds": torch.empty(rows, self.max_sequence_length, width)})

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Positions are (0, row, column, 0) for the image and (0, 0, 0, number) for the text."""
        prompt_embeds = condition.tensors["prompt_embeds"]
        row, column = grid_ids(x.shape[2], x.shape[3], x.device)
        number = torch.arange(prompt_embeds.shape[1], device=x.device)
        none, nothing = torch.zeros_like(row), torch.zeros_like(number)
        velocity: Tensor = model(
            hidden_states=x.flatten(2).transpose(1, 2),
            timestep=self._unit_timestep(sigma, x),
            encoder_hidden_states=prompt_embeds,
            txt_ids=torch.stack([nothing, nothing, nothing, number], dim=-1),
            img_ids=torch.stack([none, row, column, none], dim=-1),
            return_dict=False,
        )[0]
        return velocity.transpose(1, 2).reshape(x.shape)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Folded latents (B, C, h, w) -> pictures (B, 3, H, W), not clamped."""
        vae = self.pipeline.vae
        mean, deviation = self._statistics()
        scaled = latents.to(vae.dtype) * deviation + mean
        pictures: Tensor = vae.decode(pixel_shuffle(scaled, _FOLD), return_dict=False)[0]
        return pictures.float()

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> folded latents (B, C, h, w)."""
        vae = self.pipeline.vae
        mode = vae.encode(pictures.to(vae.dtype)).latent_dist.mode()
        mean, deviation = self._statistics()
        return ((pixel_unshuffle(mode, _FOLD) - mean) / deviation).float()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the folded latents, (1, C, 1, 1) each, in the VAE's type."""
        vae = self.pipeline.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
        return mean.to(vae.dtype), variance.sqrt().to(vae.dtype)

    def shift(self, sigmas: Tensor, height: int, width: int) -> Tensor:
        """There is none of a sigma alone.

        Raises:
            DistillError: always.
        """
        raise DistillError(
            "FLUX.2-klein shifts sigmas by how many there are, so that none has a shift of its "
            "own to train with; expected another teacher"
        )

    def _dynamic_shift(self, height: int, width: int, steps: int) -> float:
        _, h, w = self.latent_shape(height, width)
        mu: float = compute_empirical_mu(h * w, steps)
        return mu
