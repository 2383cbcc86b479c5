"""A function of the operator's looks at each picture of a real gateway."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from cdm_serve.api.hook import load_hook, seen
from cdm_serve.errors import StartError

HOOK = """
from PIL import ImageOps


def look(image, facts):
    if facts["prompt"] == "blood" or (facts["prompt"] == "late" and not facts["preview"]):
        return None
    assert facts["prompt"] != "broken"
    if facts["prompt"] == "asks in vain":
        raise TimeoutError
    return ImageOps.invert(image)
"""


@pytest.fixture(scope="module")
def gateway(start, server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hook")
    (folder / "own_hook.py").write_text(HOOK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        options = ("--on-picture", "own_hook:look", "--provenance")
        gateway = start("--triton", server.triton_address(), *options)
    gateway.wait_ready()
    yield gateway
    assert gateway.interrupt() == 0


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file))).astype(int)


def test_it_changes_pictures_and_previews(gateway, server):
    made, before = (each.picture("a fox", 7, 4) for each in (gateway, server))
    assert np.array_equal(pixels(made), 255 - pixels(before))
    assert b"trainedAlgorithmicMedia" in made
    shown = []
    for each in (gateway, server):
        events = each.generate(prompt="a fox", seed=7, stream=True, partial_images=2).text
        data = [line[6:] for line in events.splitlines() if line.startswith("data: ")]
        shown.append([pixels(base64.b64decode(json.loads(each)["b64_json"])) for each in data])
    assert len(shown[0]) == 3
    for one, other in zip(*shown, strict=True):
        assert np.array_equal(one, 255 - other)


def test_it_refuses(gateway):
    answer = gateway.generate(prompt="blood", n=2)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "moderation_blocked")
    events = gateway.generate(prompt="late", stream=True, partial_images=2).text
    kinds = [line[7:] for line in events.splitlines() if line.startswith("event: ")]
    assert kinds == ["image_generation.partial_image"] * 2 + ["error"]
    for fault in ("broken", "asks in vain"):
        answer = gateway.generate(prompt=fault)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, None)
    assert gateway.metric("cdm_serve_pictures_in_flight") == 0


@pytest.mark.parametrize("name", ["nothing_there:look", "json:nothing", "json", ""])
def test_a_hook_that_is_none_is_said(name):
    with pytest.raises(StartError, match="--on-picture must be MODULE:FUNCTION"):
        load_hook(name)


def test_a_picture_of_another_size_would_be_another_answer():
    with pytest.raises(ValueError, match="on_picture made"):
        seen(lambda image, _: image.resize((8, 8)), np.zeros((16, 16, 3), np.uint8), {})
