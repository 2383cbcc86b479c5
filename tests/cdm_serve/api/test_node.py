"""OpenAI's client for Node against the real server: pictures out and in, and streams of both."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent / "node"
PIXELS = np.random.default_rng(2).integers(0, 256, (64, 64, 4), np.uint8)
PIXELS[..., 3] = 255
HALF = PIXELS.copy()
HALF[:, 24:, 3] = 0  # to be painted


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE, MASK = png(PIXELS), png(HALF)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The script beside the client, which npm installs as package-lock.json pins it."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for file in HERE.iterdir():
        shutil.copy(file, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_client_for_node_draws_edits_and_streams(folder, server):
    (folder / "image.png").write_bytes(IMAGE)
    (folder / "mask.png").write_bytes(MASK)
    command = ["node", "pictures.mjs", f"{server.url}/v1", "image.png", "mask.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    fields = {"prompt": "a fox", "seed": 7}
    for kind, response in {
        "generated": server.generate(n=2, **fields),
        "edited": server.edit(IMAGE, MASK, **fields),
        "varied": server.edit(IMAGE, route="variations", seed=7),
    }.items():
        assert found[kind] == [item["b64_json"] for item in response.json()["data"]]
    edited = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["edited"][0]))))
    assert np.array_equal(edited[:, :24], PIXELS[:, :24, :3])
    for kind, event in {"generated": "image_generation", "edited": "image_edit"}.items():
        types, pictures = zip(*found["events"][kind], strict=True)
        assert types == (f"{event}.partial_image", f"{event}.completed")
        assert pictures[-1] == found[kind][0]
    assert found["refused"] == ["BadRequestError", 400, "image"]
