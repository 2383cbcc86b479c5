"""A model as slow as large ones are: a step takes longer than a heartbeat may, a picture minutes.

It sleeps in each step; here a second is ten of a real one.
"""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Server, Start
from onnx import numpy_helper
from tokenizers.pre_tokenizers import ByteLevel

from cdm_serve.engine.manifest import file_entry

STEP = 0.8
MODEL = f"""
import time

from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import openvino
from cdm_serve.engine.triton_model import TritonPythonModel

openvino.SMALL = 0  # large graphs are on all cores, one after the other
velocity = Pipeline.velocity


def slow(self, latents, sigma, conditions):
    time.sleep({STEP} * latents[0, 0].size / 256)  # by its pixels
    return velocity(self, latents, sigma, conditions)


Pipeline.velocity = slow
"""


def with_nan(version: Path) -> None:
    """Damage the text encoder for prompts with a ``z``, as weights that overflow do."""
    path = version / "text_encoder.onnx"
    model = onnx.load(path)
    z = sorted(ByteLevel.alphabet()).index("z")
    damaged = 0
    for weight in model.graph.initializer:
        if list(weight.dims) == [514, 32]:
            array = numpy_helper.to_array(weight).copy()
            array[[z, 256 + z]] = 3e38
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
            damaged += 1
    assert damaged
    onnx.save(model, path)
    described = json.loads((version / "export.json").read_text())
    described["components"]["text_encoder"] |= file_entry(path)
    (version / "export.json").write_text(json.dumps(described))


@pytest.fixture(scope="module")
def slow(quick_repository: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    # Also at a path that a shell would read otherwise, with links where they may be.
    folder = tmp_path_factory.mktemp("slow")
    shutil.copytree(quick_repository / "tiny", folder / "elsewhere")
    version = folder / "elsewhere" / "1"
    (version / "model.py").write_text(MODEL)
    with_nan(version)
    repository = folder / 'it\'s a "répo" $HOME #1 狐'
    repository.mkdir()
    (repository / "tiny").symlink_to(folder / "elsewhere")
    hearts = ("--heartbeat-seconds", "0.1", "--heartbeat-timeout", "0.5")
    limits = ("--queue-seconds", "2", "--max-pixels", "10000")
    server = start("--model-repository", str(repository), *hearts, *limits)
    server.wait_ready()
    return server


@pytest.mark.slow
def test_its_heart_beats_through_a_long_step(slow: Server) -> None:
    begin = time.monotonic()
    slow.picture("a fox", 7, 2)
    assert time.monotonic() - begin > 2 * STEP
    assert slow.http.get("/readyz").json()["restarts"] == 0


def test_it_is_known_what_a_picture_takes(slow: Server) -> None:
    """Also of a size that was not measured, twice as large."""

    def ask(seconds: float, **fields: object) -> tuple[int, str]:
        fields = {"prompt": "a fox", "num_inference_steps": 2} | fields
        headers = {"x-stainless-read-timeout": str(seconds)}  # as OpenAI's client says it
        answer = slow.http.post("/v1/images/generations", json=fields, headers=headers)
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    assert ask(1.5 * STEP) == (408, "deadline_too_short")
    assert ask(60 * STEP)[0] == 200
    assert ask(3 * STEP, size="64x128") == (408, "deadline_too_short")
    assert ask(60 * STEP, size="64x128")[0] == 200


def test_one_waits_and_the_next_is_told_when_to_come(slow: Server) -> None:
    """``--queue-seconds`` is shorter than a picture, which is made all the same."""

    def ask(seed: int) -> tuple[int, int]:
        fields = {"prompt": "a fox", "num_inference_steps": 4, "seed": seed}
        answer = slow.generate(**fields)
        return answer.status_code, int(answer.headers.get("retry-after", 0))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, 1)
        while not slow.metric("cdm_serve_pictures_in_flight"):
            assert not first.done()
            time.sleep(0.02)
        status, seconds = pool.submit(ask, 2).result()
        assert status == 429 and 1 <= seconds <= 8
        assert first.result() == (200, 0)


def test_nan_is_an_error_with_a_code_and_a_count(slow: Server) -> None:
    answer = slow.generate(prompt="a zebra", num_inference_steps=1)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "not_finite"
    assert slow.metric("cdm_engine_not_finite_total", model="tiny") == 1
    assert np.frombuffer(slow.picture("a fox", 7, 1), np.uint8).size
