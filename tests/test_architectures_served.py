"""Every architecture from a student to pictures: export, Triton, OpenAI's client."""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server, Start
from openai import OpenAI
from PIL import Image
from students import FAMILIES, family

from cdm_serve.engine.manifest import PICTURE, read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes.openvino import OpenVino
from distill.adapters import Adapter
from export.cli import main
from export.request import parse_sampling
from export.student import load_student

pytestmark = pytest.mark.slow

PROMPT = "a fox says 'open', 狐 🦊 \u201cq\u201d"
EDITS = ("longcat-edit",)
IMAGE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (56, 72, 3), np.uint8))
OPTIONS = ["--to", "onnx", "--sizes", "72x56,64x64", "--max-batch", "16"]
# Those whose own grid in diffusers is not the even one are served on it.
GRIDS = {"sd3.5": "default"}
# What a picture of 72 x 56 in a type is at least from diffusers' in float32; another is at 10 dB.
BARS = {"fp32": 60, "fp16": 35, "bf16": 35}


class Exported:
    """A family's student and, exported, the models of it that one Triton serves."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.repository, self._folder = name, folder / "repository", folder / "student"
        family(name, self._folder)
        self.grid = GRIDS.get(name, "even")
        self.adapter: Adapter = load_student(self._folder, parse_sampling(grid=self.grid)).adapter
        types = ["fp32", "bf16"] + ["fp16"] * (self.adapter.half == torch.float16)
        self.models = {each: name if each == "fp32" else f"{name}-{each}" for each in types}
        for precision in self.models:
            # Compared quickly weights are loaded in two bytes, as they are below.
            level = "full" if precision == "fp32" else "quick"
            self.export(precision, self.repository, "--verify", level)
        # OpenVINO would compute in bfloat16 where the processor has it.
        config = self.repository / name / "config.pbtxt"
        text = config.read_text()
        automatic = 'key: "precision" value { string_value: "auto" }'
        assert text.count(automatic) == 1
        config.write_text(text.replace(automatic, automatic.replace("auto", "f32")))

    def export(self, precision: str, folder: Path, *more: str) -> dict[str, Any]:
        """What ``export.json`` says of an export into a folder."""
        name = self.models[precision]
        options = [*OPTIONS, "--grid", self.grid, "--precision", precision, "--name", name]
        assert main([str(self._folder), *options, "--out", str(folder), *more]) == 0
        said: dict[str, Any] = json.loads((folder / name / "1" / "export.json").read_text())
        return said

    def reference(self, seed: int) -> Any:
        """diffusers' own picture."""
        generator = torch.Generator().manual_seed(seed)
        image = IMAGE if self.name in EDITS else None
        grid: Any = self.grid
        return self.adapter.picture(PROMPT, 4, 56, 72, generator, grid, image=image)


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def served(exported: Exported, start: Start) -> Iterator[Server]:
    server = start("--model-repository", str(exported.repository))
    server.wait_ready()
    yield server
    server.interrupt()


def file(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def generate(server: Server, name: str, n: int = 1, **more: Any) -> list[bytes]:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    images = client.images
    make = partial(images.edit, image=file(IMAGE)) if name.startswith(EDITS) else images.generate
    answer = make(model=name, prompt=PROMPT, n=n, size="72x56", extra_body={"seed": 7} | more)
    assert answer.data and len(answer.data) == n
    return [base64.b64decode(each.b64_json or "") for each in answer.data]


def test_pictures_are_diffusers_own(exported: Exported, served: Server) -> None:
    """Four of them, that are not square, in every type."""
    references = [np.asarray(exported.reference(7 + i), float) for i in range(4)]
    assert references[0].shape == (56, 72, 3)
    found = {}
    for precision, model in exported.models.items():
        pictures = [
            np.asarray(Image.open(io.BytesIO(each)), float) for each in generate(served, model, n=4)
        ]
        errors = np.square(np.subtract(pictures, references)).mean(axis=(1, 2, 3))
        found[precision] = 10 * np.log10(255**2 / max(errors.max(), 1e-9))
    assert all(db >= BARS[precision] for precision, db in found.items()), found


def test_company_changes_no_byte(exported: Exported, served: Server) -> None:
    """Sixteen at once with different numbers of steps, against each alone."""
    steps = [2, 4, 3, 1] * 4
    for model in exported.models.values():
        alone = {count: generate(served, model, steps=count) for count in set(steps)}
        with ThreadPoolExecutor(16) as pool:
            waiting = [pool.submit(generate, served, model, steps=count) for count in steps]
            together = [each.result() for each in waiting]
        assert together == [alone[count] for count in steps], model


def test_every_batch_up_to_16_has_the_bits_of_single_samples(exported: Exported) -> None:
    """Each sample at a noise level of its own; the text encoder and the decoder as well."""
    manifest = read_manifest(exported.repository / exported.name / "1")
    pipeline = Pipeline(manifest, OpenVino("f32"))
    prompts = [f"{PROMPT} {i}" for i in range(16)]
    pixels, more = None, {}
    if exported.name in EDITS:
        pixels, more = np.stack([IMAGE] * 16), {PICTURE: pipeline.encode_picture(np.array(IMAGE))}
    noise, sigma = pipeline.noises(range(16), "72x56"), np.linspace(1, 0.1, 16, dtype=np.float32)

    def run(rows: slice) -> list[Any]:
        found = pipeline.encode(prompts[rows], None if pixels is None else pixels[rows])
        conditions = [replace(each, embeds=each.embeds | more) for each in found]
        velocity = pipeline.velocity(noise[rows], sigma[rows], conditions)
        texts = [np.stack([each.embeds[name] for each in found]) for name in found[0].embeds]
        return [*texts, velocity, pipeline.decode(noise[rows])]

    singles = [run(slice(i, i + 1)) for i in range(16)]
    alone = [np.concatenate(each) for each in zip(*singles, strict=True)]
    for batch in range(2, 17):
        together = run(slice(batch))
        pairs = zip(together, alone, strict=True)
        assert all(np.array_equal(found, each[:batch]) for found, each in pairs), batch


def test_edits_depend_on_their_picture_and_nothing_is_made_without(
    exported: Exported, served: Server
) -> None:
    name = exported.name
    if name not in EDITS:
        pytest.skip("makes pictures of prompts alone")
    (usual,) = generate(served, name)
    fields = {"model": name, "prompt": PROMPT, "size": "72x56", "seed": 7}
    other = served.edit(file(IMAGE.rotate(180)), **fields).json()["data"][0]
    assert base64.b64decode(other["b64_json"]) != usual
    assert other["receipt"]["strength"] == 1.0 and len(other["receipt"]["batches"]) == 4
    refused = served.generate(**fields)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "model"
    assert "edits a picture: send one to /v1/images/edits" in refused.json()["error"]["message"]


def test_a_second_export_has_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    for precision, model in exported.models.items():
        first = json.loads((exported.repository / model / "1" / "export.json").read_text())
        second = exported.export(precision, tmp_path, "--verify", "none")
        assert first["fingerprint"] == second["fingerprint"], model
