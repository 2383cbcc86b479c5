"""Pixels to a PNG, JPEG or WebP file that says what it is."""

import io
import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdm_serve.api.png import encode_png

OutputFormat = Literal["png", "jpeg", "webp"]

EXIF_IMAGE_DESCRIPTION = 0x010E


def encode_image(
    pixels: NDArray[np.uint8], output_format: OutputFormat, quality: int, facts: Mapping[str, str]
) -> bytes:
    """(H, W, 3) pixels as a file; ``quality`` (0-100) is for jpeg and webp.

    ``facts`` are text chunks of a png, and one JSON object in a jpeg's comment or in the image
    description of a webp's EXIF. Equal arguments give equal bytes.
    """
    if output_format == "png":
        return encode_png(pixels, facts)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    text = json.dumps(dict(facts))
    if output_format == "jpeg":
        image.save(buffer, "JPEG", quality=quality, comment=text)
    else:
        exif = Image.Exif()
        exif[EXIF_IMAGE_DESCRIPTION] = text
        image.save(buffer, "WEBP", quality=quality, exif=exif)
    return buffer.getvalue()
