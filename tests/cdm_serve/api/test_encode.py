import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cdm_serve.api.encode import EXIF_IMAGE_DESCRIPTION, encode_image, provenance_of

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


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


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_provenance_is_where_others_read_it(pixels, output_format):
    for edit, source in ((False, "trained"), (True, "compositeWithTrained")):
        xmp = provenance_of('a "model"', edit=edit)
        image = Image.open(io.BytesIO(encode_image(pixels, output_format, 90, {"seed": "7"}, xmp)))
        image.load()
        found = image.info["xmp"] if output_format != "png" else image.text["XML:com.adobe.xmp"]
        text = found if isinstance(found, str) else found.decode()
        (description,) = ElementTree.fromstring(text).iter(f"{RDF}Description")
        assert description.get(f"{IPTC}AISystemUsed") == 'cdm-serve, a "model"'
        term = description.get(f"{IPTC}DigitalSourceType").rpartition("/")[2]
        assert term == f"{source}AlgorithmicMedia"
