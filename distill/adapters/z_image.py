"""Z-Image: ``ZImageTransformer2DModel``, one stream of picture and text, behind a Qwen3."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle
from transformers import Qwen3PreTrainedModel

from distill.adapters.adapter import Adapter
from distill.adapters.condition import Condition
from distill.adapters.language import check_chat, without_logits
from distill.adapters.packing import grid_ids
from distill.errors import DistillError

_PATCH = "2-1"  # the transformer's name for patches of 2 by 2 pixels and one frame
_SIDE = 2
_LONGEST_TEXT = 512  # positions of the picture lie behind it, and end at 1024


class ZImageAdapter(Adapter):
    """Mirrors ``diffusers.ZImagePipeline``.

    diffusers hands its transformer a list of prompts of different lengths; here they are padded to
    one length with a mask, and ``_Masked`` gives the same numbers for them.

    Args:
        pipeline: the pipeline whose components are used, the transformer as a ``_Masked``.
        max_sequence_length: text tokens, the chat's template included, a multiple of 32; 512
            unless given.

    Raises:
        DistillError: another text encoder or length, other patches, a tokenizer without a chat's
            template, or a scheduler that ``Adapter`` refuses.
    """

    name = "z-image"
    half = torch.bfloat16  # Qwen's activations leave float16's range
    guidance_scale = 0.0  # the pipeline's number for none

    def __init__(self, pipeline: Any, max_sequence_length: int | None = None) -> None:
        transformer, encoder = pipeline.transformer, pipeline.text_encoder
        if not isinstance(encoder, Qwen3PreTrainedModel):  # of which the pipeline says nothing
            raise DistillError(
                f"the text encoder is a {type(encoder).__name__}; expected Z-Image's, a Qwen3Model"
            )
        check_chat(pipeline.tokenizer)
        length = _LONGEST_TEXT if max_sequence_length is None else max_sequence_length
        if length % SEQ_MULTI_OF or not 1 <= length <= _LONGEST_TEXT:
            raise DistillError(
                f"max_sequence_length = {length}: Z-Image reads a multiple of {SEQ_MULTI_OF} text "
                f"tokens, {_LONGEST_TEXT} at most"
            )
        if _PATCH not in transformer.all_x_embedder:
            raise DistillError("the transformer has no patches of 2 by 2; expected Z-Image's")
        transformer.__class__ = _Masked
        options = {"max_sequence_length": length}
        super().__init__(pipeline, _SIDE, transformer.config.in_channels, length, options)

    @property
    def default_side(self) -> int:
        """The pipeline has no ``default_sample_size``."""
        return 1024

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """``prompt_embeds`` (B, T, D), zero where ``prompt_mask`` (B, T) is, in int64."""
        encoder = self.pipeline.text_encoder
        with without_logits(encoder):
            rows, _ = self.pipeline.encode_prompt(
                list(prompts),  # which the pipeline writes its template into
                device=encoder.device,  # else the transformer's
                do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )
        missing = [self.max_sequence_length - len(row) for row in rows]
        masks = [row.new_ones(len(row), dtype=torch.int64) for row in rows]
        padded = zip(rows, masks, missing, strict=True)
        embeds, mask = zip(
            *((pad(row, (0, 0, 0, rest)), pad(ones, (0, rest))) for row, ones, rest in padded),
            strict=True,
        )
        return Condition({"prompt_embeds": torch.stack(embeds), "prompt_mask": torch.stack(mask)})

    def empty_condition(self, rows: int) -> Condition:
        """As ``encode`` has it."""
        shape = rows, self.max_sequence_length
        width = self.pipeline.transformer.config.cap_feat_dim
        mask = torch.empty(shape, dtype=torch.int64)
        return Condition({"prompt_embeds": torch.empty(*shape, width), "prompt_mask": mask})

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The network counts time from noise to picture, and answers in that direction."""
        answer: Tensor = model(
            x, 1 - sigma, condition.tensors["prompt_embeds"], mask=condition.tensors["prompt_mask"]
        )
        return -answer


class _Masked(diffusers.ZImageTransformer2DModel):  # type: ignore[misc]
    """The transformer for a padded batch: of one shape, and asking the device for no length.

    As in diffusers a prompt's tokens are filled up to a multiple of 32 by a token that is seen, and
    so are the picture's; the positions of the picture lie behind those of the filled prompt.
    """

    def forward(self, x: Any, t: Tensor, cap_feats: Any, mask: Any = None, **options: Any) -> Any:
        """Latents (B, C, h, w) at times (B,), embeddings (B, T, D) and their mask (B, T).

        Without a mask as diffusers has it, of lists.
        """
        if mask is None:
            return super().forward(x, t, cap_feats, **options)
        time = self.t_embedder(t * self.t_scale).type_as(x)
        rows, columns = x.shape[2] // _SIDE, x.shape[3] // _SIDE
        tokens = rows * columns

        number = torch.arange(mask.shape[1], device=x.device)
        length = mask.sum(dim=1, keepdim=True)
        filled = _up(length)  # (B, 1)
        text = torch.where(mask[..., None].bool(), self.cap_embedder(cap_feats), self.cap_pad_token)
        text_seen = number < filled
        nothing = torch.zeros_like(number)
        positions = torch.stack([number + 1, nothing, nothing], dim=-1)
        positions = positions.expand(len(mask), -1, -1)

        # As many filling tokens as any size needs, of which some are seen.
        image = self.all_x_embedder[_PATCH](_patches(x))
        fill = self.x_pad_token.expand(len(mask), SEQ_MULTI_OF - 1, -1)
        image = torch.cat([image, fill.type_as(image)], dim=1)
        image_number = torch.arange(tokens + SEQ_MULTI_OF - 1, device=x.device)
        image_seen = (image_number < _up(tokens)).expand(len(mask), -1)
        row, column = grid_ids(rows, columns, x.device)
        frame = (filled + 1).expand(-1, tokens)
        places = torch.stack([frame, row.expand_as(frame), column.expand_as(frame)], dim=-1)
        places = pad(places, (0, 0, 0, SEQ_MULTI_OF - 1))
        together = torch.cat([places, positions], dim=1)
        turns = self.rope_embedder(together.flatten(0, 1)).unflatten(0, together.shape[:2])

        behind = places.shape[1]
        for layer in self.noise_refiner:
            image = self._run(layer, image, image_seen, turns[:, :behind], time)
        for layer in self.context_refiner:
            text = self._run(layer, text, text_seen, turns[:, behind:])
        both = torch.cat([image, text], dim=1)
        seen = torch.cat([image_seen, text_seen], dim=1)
        for layer in self.layers:
            both = self._run(layer, both, seen, turns, time)
        answer = self.all_final_layer[_PATCH](both[:, :tokens], c=time)
        return _picture(answer, rows, columns)

    def _run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            states: Tensor = self._gradient_checkpointing_func(layer, *inputs)
        else:
            states = layer(*inputs)
        return states


def _up(length: Any) -> Any:
    """The multiple of 32 that is not smaller."""
    return (length + SEQ_MULTI_OF - 1) // SEQ_MULTI_OF * SEQ_MULTI_OF


def _patches(x: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> tokens (B, N, 4C), channels last within a patch."""
    parts = pixel_unshuffle(x, _SIDE).reshape(*x.shape[:2], _SIDE**2, -1)
    return parts.permute(0, 3, 2, 1).flatten(2)


def _picture(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The way back."""
    parts = tokens.reshape(*tokens.shape[:2], _SIDE**2, -1).permute(0, 3, 2, 1)
    return pixel_shuffle(parts.reshape(len(tokens), -1, rows, columns), _SIDE)


# What a saved pipeline and its configuration name.
_Masked.__name__ = "ZImageTransformer2DModel"
