"""Pixels to a PNG, JPEG or WebP file."""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

OutputFormat = Literal["png", "jpeg", "webp"]

# Pillow's default level takes three times as long for the same size on pictures like these.
PNG_LEVEL = 1
PNG_STRATEGY_RLE = 3


def encode_image(
    pixels: NDArray[np.uint8], output_format: OutputFormat, quality: int, facts: dict[str, str]
) -> bytes:
    """(H, W, 3) pixels as a file; ``quality`` (0-100) is for jpeg and webp, ``facts`` for png."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if output_format == "png":
        text = PngInfo()
        for key, value in facts.items():
            text.add_text(key, value)
        image.save(
            buffer, "PNG", pnginfo=text, compress_level=PNG_LEVEL, compress_type=PNG_STRATEGY_RLE
        )
    elif output_format == "jpeg":
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()
