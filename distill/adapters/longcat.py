"""LongCat-Image: ``LongCatImageTransformer2DModel`` behind the language half of a Qwen2.5-VL."""

from __future__ import annotations

import torch
from diffusers import LongCatImagePipeline
from torch import Tensor, nn

from distill.adapters.adapter import Adapter
from distill.adapters.condition import Condition
from distill.adapters.language import without_logits
from distill.adapters.packing import PATCH, grid_ids, pack, unpack
from distill.errors import DistillError


class LongCatAdapter(Adapter):
    """Mirrors ``diffusers.LongCatImagePipeline`` without prompt rewriting.

    Text is 512 tokens, padded: the text encoder masks the padding, the transformer attends to all
    of it. The template around the prompt is encoded with it and cut off again.

    ``velocity`` is the network's bare answer, without guidance: what CDM's losses compare and what
    a student is sampled along. ``guided`` is for pictures of the guided teacher alone, and there
    includes the ``enable_cfg_renorm`` that the pipeline has on by default.

    Args:
        pipeline: built or loaded with ``text_processor=None``; its components are used as they are.
        max_sequence_length: 512 or nothing; the pipeline has no other text length.

    Raises:
        DistillError: another text length, or a scheduler that ``Adapter`` refuses.
    """

    name = "longcat"
    half = torch.bfloat16  # Qwen's activations leave float16's range
    ignored = frozenset({"text_processor"})  # only rewrites prompts

    def __init__(
        self, pipeline: LongCatImagePipeline, max_sequence_length: int | None = None
    ) -> None:
        channels = pipeline.transformer.config.in_channels // PATCH**2
        length = pipeline.tokenizer_max_length
        super().__init__(pipeline, PATCH, channels, length, {"enable_prompt_rewrite": False})
        if max_sequence_length not in (None, length):
            raise DistillError(
                f"max_sequence_length = {max_sequence_length}: LongCat-Image always reads "
                f"{length} text tokens; set it to {length}"
            )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """``prompt_embeds`` (B, 512, D), padding included."""
        # A pipeline with the text encoder alone: a whole one takes the transformer's device.
        text = LongCatImagePipeline(
            scheduler=self.pipeline.scheduler,
            vae=None,
            text_encoder=self.pipeline.text_encoder,
            tokenizer=self.pipeline.tokenizer,
            text_processor=None,
            transformer=None,
        )
        with without_logits(text.text_encoder):
            prompt_embeds, _ = text.encode_prompt(prompts)
        return Condition({"prompt_embeds": prompt_embeds})

    def empty_condition(self, rows: int) -> Condition:
        """As ``encode`` has it."""
        width = self.pipeline.transformer.config.joint_attention_dim
        return Condition({"prompt_embeds": torch.empty(rows, self.max_sequence_length, width)})

    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Of latents that are not packed; a ``picture`` (B, C, h, w) is further tokens."""
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        prompt_embeds = condition.tensors["prompt_embeds"]
        text = prompt_embeds.shape[1]
        tokens, ids = pack(x), _image_ids(1, rows, columns, text, x.device)
        if (picture := condition.tensors.get("picture")) is not None:
            tokens = torch.cat([tokens, pack(picture)], dim=1)
            ids = torch.cat([ids, _image_ids(2, rows, columns, text, x.device)])
        velocity: Tensor = model(
            hidden_states=tokens,
            timestep=self._unit_timestep(sigma, x),
            encoder_hidden_states=prompt_embeds,
            txt_ids=_text_ids(text, x.device),
            img_ids=ids,
            return_dict=False,
        )[0]
        return unpack(velocity[:, : rows * columns], rows, columns)

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """Guidance, then every image token scaled down to its length in ``with_prompt``."""
        tokens = pack(super().guided(with_prompt, without, scale))
        lengths = [v.norm(dim=-1, keepdim=True) for v in (pack(with_prompt), tokens)]
        tokens = tokens * (lengths[0] / (lengths[1] + 1e-8)).clamp(max=1.0)
        return unpack(tokens, with_prompt.shape[2] // PATCH, with_prompt.shape[3] // PATCH)


def _text_ids(tokens: int, device: torch.device) -> Tensor:
    """Positions of the text tokens, (T, 3): modality 0, then the token's number twice."""
    number = torch.arange(tokens, device=device)
    return torch.stack([torch.zeros_like(number), number, number], dim=-1)


def _image_ids(modality: int, rows: int, columns: int, start: int, device: torch.device) -> Tensor:
    """Positions of the image tokens, (rows * columns, 3): modality, row and column.

    1 is what is drawn, 2 a picture that came in. The latter two count from ``start``, behind the
    text.
    """
    row, column = grid_ids(rows, columns, device)
    return torch.stack([torch.full_like(row, modality), row + start, column + start], dim=-1)
