"""A tiny decoder for a student's latents: an ``AutoencoderTiny``, as TAESD's makers publish it.

Unlike the student's own it takes latents as the transformer has them; what it scales them by, which
is 1 in those that are published, its own configuration says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.adapters import Adapter
from distill.adapters.components import load_components
from distill.errors import DistillError
from export.errors import ExportError


def load_tiny(source: Path, adapter: Adapter) -> nn.Module:
    """The autoencoder in a folder or of a hub name, in float32.

    Raises:
        ExportError: it cannot be had, is damaged, or is not one for these latents.
    """
    if not adapter.plain_latents:
        raise ExportError(
            f"--decoder: latents of {adapter.name} pass through statistics of its own autoencoder, "
            "which an AutoencoderTiny has not; leave it out"
        )
    entry = {source.name: ("diffusers", "AutoencoderTiny")}
    try:
        tiny: nn.Module = load_components(source.parent, entry, torch.float32)[source.name]
    except DistillError as error:
        raise ExportError(f"--decoder: {error}") from error
    config: Any = tiny.config
    side = adapter.default_side
    channels, height, _ = adapter.latent_shape(side, side)
    upscale = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
    found, needed = (config.latent_channels, upscale), (channels, side // height)
    if found != needed or config.out_channels != 3:
        text = "{} channels with {} pixels a side of each"
        raise ExportError(
            f"--decoder {source}: it is for latents of {text.format(*found)}, and the student's "
            f"are of {text.format(*needed)}"
        )
    return tiny
