import io

import numpy as np
import pytest
from PIL import Image

from cdm_serve.api.png import encode_png

RANDOM = np.random.default_rng(0)
PICTURES = {
    "one pixel": np.array([[[1, 2, 3]]], np.uint8),
    "one row": RANDOM.integers(0, 256, (1, 33, 3), dtype=np.uint8),
    "one column": RANDOM.integers(0, 256, (33, 1, 3), dtype=np.uint8),
    "noise": RANDOM.integers(0, 256, (40, 56, 3), dtype=np.uint8),
    "extremes": np.where(RANDOM.random((40, 56, 3)) < 0.5, 0, 255).astype(np.uint8),
    "plain": np.full((64, 96, 3), 200, np.uint8),
    "smooth": np.add.outer(np.arange(64), np.add.outer(np.arange(96), [0, 20, 40])).astype(
        np.uint8
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_another_reader_sees_every_pixel(name):
    image = Image.open(io.BytesIO(encode_png(PICTURES[name], {})))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), PICTURES[name])


def test_texts_are_read_back():
    texts = {"seed": "7", "author": "Jürgen"}
    image = Image.open(io.BytesIO(encode_png(PICTURES["noise"], texts)))
    assert image.text == texts


def test_smooth_pictures_are_as_small_as_pillows():
    buffer = io.BytesIO()
    Image.fromarray(PICTURES["smooth"]).save(buffer, "PNG", compress_level=1, compress_type=3)
    assert len(encode_png(PICTURES["smooth"], {})) < 1.1 * len(buffer.getvalue())
