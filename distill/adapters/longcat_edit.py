"""LongCat-Image-Edit: LongCat-Image whose condition is of a picture too, twice."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from PIL import Image
from torch import Tensor, nn

from distill.adapters.adapter import Adapter, Grid
from distill.adapters.condition import Condition
from distill.adapters.language import without_logits
from distill.adapters.longcat import LongCatAdapter
from distill.errors import DistillError


class LongCatEditAdapter(LongCatAdapter):
    """Mirrors ``diffusers.LongCatImageEditPipeline``, in any size and not in a megapixel alone.

    The text encoder sees the picture at half its size before the prompt, and what it makes of the
    picture's tokens stays before the 512 of the text. The transformer takes the picture's latents
    as further image tokens of a modality of their own.

    diffusers does not say to transformers 5 which tokens are the picture's, whereupon their rows
    and columns would be lost; here it is said, as transformers 4 saw it by itself.

    Raises:
        DistillError: what ``LongCatAdapter`` refuses.
    """

    name = "longcat-edit"
    ignored = frozenset()  # the text processor has what pictures are prepared with
    needs_picture = True

    def __init__(self, pipeline: Any, max_sequence_length: int | None = None) -> None:
        super().__init__(pipeline, max_sequence_length)
        self._options = {}
        pipeline.text_encoder.register_forward_pre_hook(_say_which, with_kwargs=True)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """Impossible.

        Raises:
            DistillError: always.
        """
        raise DistillError(
            "LongCat-Image-Edit has no condition of a prompt alone, so that it cannot be distilled "
            "here: its students are exported and served"
        )

    @torch.no_grad()
    def condition(self, prompts: list[str], pictures: Tensor | None = None) -> Condition:
        """``prompt_embeds`` (B, T, D), and ``picture`` (B, C, h, w), its latents.

        T is 514 and the picture's tokens: one for each 56 by 56 pixels.
        """
        if pictures is None:
            return self.encode(prompts)
        height, width = pictures.shape[2:]
        pixels = (
            ((pictures * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        )
        processor, encoder = self.pipeline.image_processor, self.pipeline.text_encoder
        rows = []
        with without_logits(encoder):
            for prompt, each in zip(prompts, pixels, strict=True):
                seen = processor.resize(Image.fromarray(each), height // 2, width // 2)
                rows.append(self.pipeline.encode_prompt([prompt], seen)[0])
        return Condition(
            {"prompt_embeds": torch.cat(rows), "picture": self.encode_pictures(pictures)}
        )

    def empty_condition(self, rows: int) -> Condition:
        """As ``condition`` has it, of the default size."""
        shapes = self.condition_shapes(self.default_side, self.default_side)
        return Condition({name: torch.empty(rows, *shape) for name, shape in shapes.items()})

    def views(self, height: int, width: int) -> list[tuple[int, int, str]]:
        """Half the size, then the nearest that the vision tower's patches divide."""
        first = self.pipeline.image_processor.config.resample.upper()
        second = Image.Resampling(self.pipeline.image_processor_vl.resample).name
        seen = 28 * round(width / 56), 28 * round(height / 56)
        return [(width // 2, height // 2, first), (*seen, second)]

    def condition_shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of one row for a picture of a size, by name."""
        tokens = round(height / 56) * round(width / 56) + 2 + self.max_sequence_length
        return {
            "prompt_embeds": (tokens, self.pipeline.transformer.config.joint_attention_dim),
            "picture": self.latent_shape(height, width),
        }

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """As every adapter's.

        Raises:
            DistillError: also where the text encoder would not see the picture at half its size.
        """
        limits = self.pipeline.image_processor_vl.size
        seen = round(height / 56) * round(width / 56) * 28**2
        if not limits["shortest_edge"] <= seen <= limits["longest_edge"]:
            raise DistillError(
                f"size {width}x{height}: the text encoder sees pictures at half their size, which "
                f"has {limits['shortest_edge']} to {limits['longest_edge']} pixels"
            )
        return super().latent_shape(height, width)

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """Guidance alone."""
        return Adapter.guided(self, with_prompt, without, scale)

    def picture(
        self,
        prompt: str,
        steps: int,
        height: int,
        width: int,
        generator: torch.Generator,
        grid: Grid = "even",
        image: Any = None,
    ) -> Any:
        """As every adapter's; ``image`` is of that size."""
        # The pipeline takes a megapixel, of the image's shape; it has no argument for that.
        own = pipeline_longcat_image_edit.calculate_dimensions
        pipeline_longcat_image_edit.calculate_dimensions = lambda *_: (width, height)
        try:
            return super().picture(prompt, steps, height, width, generator, grid, image)
        finally:
            pipeline_longcat_image_edit.calculate_dimensions = own


def _say_which(encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Of the tokens which are the picture's."""
    config: Any = encoder.config
    kinds = (kwargs["input_ids"] == config.image_token_id).int()
    return args, kwargs | {"mm_token_type_ids": kinds}
