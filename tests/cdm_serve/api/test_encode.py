import io
import json

import numpy as np
import pytest
from PIL import Image

from cdm_serve.api.encode import EXIF_IMAGE_DESCRIPTION, encode_image


@pytest.fixture
def pixels():
    row = np.linspace(0, 255, 96, dtype=np.uint8)
    return np.stack([np.tile(row, (64, 1))] * 3, axis=-1)


def test_png_is_lossless_and_carries_the_facts(pixels):
    image = Image.open(io.BytesIO(encode_image(pixels, "png", 100, {"seed": "7", "steps": "4"})))
    assert np.array_equal(np.asarray(image), pixels)
    assert image.text == {"seed": "7", "steps": "4"}


def test_jpeg_and_webp_carry_the_facts_as_json(pixels):
    facts = {"seed": "7", "fingerprint": "f00d"}
    jpeg = Image.open(io.BytesIO(encode_image(pixels, "jpeg", 90, facts)))
    assert json.loads(jpeg.info["comment"]) == facts
    webp = Image.open(io.BytesIO(encode_image(pixels, "webp", 90, facts)))
    assert json.loads(webp.getexif()[EXIF_IMAGE_DESCRIPTION]) == facts


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_trades_size_for_likeness(pixels, output_format):
    files = [encode_image(pixels, output_format, quality, {}) for quality in (5, 95)]
    assert len(files[0]) < len(files[1])
    image = Image.open(io.BytesIO(files[1]))
    assert image.format == output_format.upper()
    assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 3
