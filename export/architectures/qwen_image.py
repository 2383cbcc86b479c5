"""Qwen-Image: a Qwen2.5-VL with a template to be dropped, rotary tables, a VAE for one frame."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import Tensor, nn

from distill.adapters.packing import PATCH, grid_ids
from export.architectures.architecture import Architecture
from export.architectures.language import last_hidden
from export.architectures.rotary import Turns
from export.precision import cast
from export.tokenizers import PipelineTokenizer, padded

# Positions of the tables: the image's lie around 0, the text's behind the image's.
_LOWEST, _POSITIONS = -512, 2048


class QwenImage(Architecture):
    """Exports what ``QwenImageAdapter`` adapts."""

    masks = True

    def tokenizers(self) -> list[PipelineTokenizer]:
        """Qwen's, with the template that the text encoder's graph drops again."""
        pipeline = self.pipeline
        length = self.adapter.max_sequence_length + pipeline.prompt_template_encode_start_idx
        return [padded(pipeline.tokenizer, length, pipeline.prompt_template_encode.format)]

    def text_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The language model."""
        return QwenImageTextEncoder(self.pipeline, dtype)

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """With rotary embeddings from tables that can be looked up at any size."""
        transformer = super().transformer(dtype)
        transformer.pos_embed = QwenImageTables(transformer.pos_embed)
        return transformer

    def vae(self, dtype: torch.dtype) -> nn.Module:
        """With kernels one frame deep: before a single frame causal ones see zeros alone."""
        vae = super().vae(dtype)
        for convolution in vae.modules():
            if isinstance(convolution, QwenImageCausalConv3d):
                convolution.weight = nn.Parameter(convolution.weight[:, :, -1:].clone())
                convolution._padding = (*convolution._padding[:4], 0, 0)
        return vae

    @property
    def longest_side(self) -> int:
        """Where the tables end, in pixels."""
        return -2 * _LOWEST * PATCH * int(self.pipeline.vae_scale_factor)


class QwenImageTextEncoder(nn.Module):
    """``QwenImagePipeline.encode_prompt`` from the token ids on."""

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.language_model = cast(pipeline.text_encoder.model.language_model, dtype)
        self.dropped: int = pipeline.prompt_template_encode_start_idx

    def forward(self, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) -> ``prompt_embeds`` (B, T, D) and ``prompt_mask`` (B, T)."""
        ids, mask = tokens
        hidden = last_hidden(self.language_model, ids, mask)[:, self.dropped :]
        kept = mask[:, self.dropped :]
        return hidden.float() * kept[..., None], kept


class QwenImageTables(nn.Module):
    """``QwenEmbedRope`` by table."""

    def __init__(self, pos_embed: Any) -> None:
        super().__init__()
        positions = torch.arange(_LOWEST, _LOWEST + _POSITIONS)
        for axis, width in enumerate(pos_embed.axes_dim):
            turns = pos_embed.rope_params(positions, width, pos_embed.theta)
            self.register_buffer(f"turns_{axis}", torch.view_as_real(turns), persistent=False)

    def forward(
        self, img_shapes: Any, max_txt_seq_len: int, device: torch.device
    ) -> tuple[Turns, Turns]:
        """Turns of the image's and of the text's tokens, (N, D/2) both."""
        _, rows, columns = img_shapes[0][0]
        row, column = grid_ids(rows, columns, device)
        row, column = row - (rows - rows // 2), column - (columns - columns // 2)
        number = torch.arange(max_txt_seq_len, device=device)
        number = number + torch.maximum(row.max(), column.max()) + 1
        return self._turns([torch.zeros_like(row), row, column]), self._turns([number] * 3)

    def _turns(self, positions: list[Tensor]) -> Turns:
        tables = [getattr(self, f"turns_{axis}") for axis in range(len(positions))]
        pairs = [
            table.index_select(0, position - _LOWEST)
            for table, position in zip(tables, positions, strict=True)
        ]
        return Turns(torch.cat(pairs, dim=1))
