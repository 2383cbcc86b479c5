"""A model and its LoRA'd variant in one process: under load, killed, added and removed."""

import base64
import io
import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from conftest import Server, Start, copy_reduced
from PIL import Image
from safetensors.numpy import save_file

from cdm_serve.engine.manifest import read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import check_alike, open_runtime
from cdm_serve.errors import StartError
from cdm_serve.repository import check_model
from export.cli import main as export

pytestmark = pytest.mark.slow  # an export of its own and four starts

KEY = "transformer.transformer_blocks.0.attn.to_q"
SHARED = ("text_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def family(repository: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with ``tiny``, its variant ``tiny-lora``, and ``alone``, which is the same."""
    folder = tmp_path_factory.mktemp("family") / "model_repository"
    copy_reduced(repository, folder, max_batch=4)
    generator = np.random.default_rng(0)
    lora = {
        f"{KEY}.lora_A.weight": generator.normal(size=(4, 32)).astype(np.float32),
        f"{KEY}.lora_B.weight": generator.normal(size=(32, 4)).astype(np.float32),
    }
    file = folder.parent / "lora.safetensors"
    save_file(lora, file, {"format": "pt"})
    command = [str(student), "--lora", str(file), "--to", "onnx", "--out", str(folder)]
    command += ["--name", "tiny-lora", "--variant-of", "tiny", "--verify", "quick"]
    command += ["--max-batch", "4", "--components", "text_encoder,transformer,vae_decoder"]
    with redirect_stdout(io.StringIO()) as printed:
        assert export(command) == 0
    assert "one file with another model: text_encoder.onnx, vae_decoder.onnx" in printed.getvalue()
    shutil.copytree(folder / "tiny" / "variants" / "tiny-lora", folder / "alone")
    return folder


@pytest.fixture(scope="module")
def own(family: Path, start: Start) -> Server:
    server = start("--model-repository", str(family))
    server.wait_ready()
    return server


def versions(family: Path) -> list[Path]:
    return [family / "tiny" / "1", family / "tiny" / "variants" / "tiny-lora" / "1"]


def models(server: Server) -> list[str]:
    return [entry["id"] for entry in server.http.get("/v1/models").json()["data"]]


def picture(server: Server, model: str, k: int) -> bytes:
    """Its pixels: the file says which model made it."""
    answer = server.generate(
        model=model, prompt=f"a fox {k % 3}", seed=k, num_inference_steps=1 + k % 4
    )
    assert answer.status_code == 200, answer.text
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return Image.open(io.BytesIO(file)).tobytes()


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_the_same_is_stored_and_loaded_once(family: Path) -> None:
    tiny, variant = versions(family)
    for component in SHARED:
        assert (tiny / f"{component}.onnx").samefile(variant / f"{component}.onnx")
    assert not (tiny / "transformer.onnx").samefile(variant / "transformer.onnx")

    runtime = open_runtime("openvino", "f32")
    load, asked = runtime.load, []
    runtime.load = lambda path: asked.append(path) or load(path)  # type: ignore[method-assign]
    loaded: dict = {}
    pipelines = [Pipeline(read_manifest(each), runtime, loaded) for each in (tiny, variant)]
    assert [path for path in asked if path.parent == variant] == [variant / "transformer.onnx"]
    first, second = (each.manifest.identities for each in pipelines)
    assert {name for name, identity in second.items() if identity == first[name]} == {*SHARED}


def test_each_gives_the_bytes_that_it_gives_alone(own: Server, server: Server) -> None:
    assert models(own) == ["alone", "tiny", "tiny-lora"]
    count = 24
    bases = [picture(server, "tiny", k) for k in range(count)]
    variants = [picture(own, "alone", k) for k in range(count)]
    assert not set(bases) & set(variants)
    work = [(name, k) for k in range(count) for name in ("tiny", "tiny-lora")]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda each: picture(own, *each), work))
    assert found == [made for pair in zip(bases, variants, strict=True) for made in pair]
    for name in ("tiny", "tiny-lora"):
        assert own.metric("cdm_engine_pictures_total", model=name) == count


def test_a_kill_of_the_process_is_survived_by_both(own: Server) -> None:
    expected = {(name, k): picture(own, name, k) for name in ("tiny", "tiny-lora") for k in (5, 6)}
    restarts = own.http.get("/readyz").json()["restarts"]
    stubs = [pid for pid, name in own.descendants().items() if name.startswith("triton_python")]
    assert len(stubs) == 2  # of three models
    for stub in stubs:
        os.kill(stub, signal.SIGKILL)
    wait_until(lambda: own.http.get("/readyz").json().get("restarts") == restarts + 1)
    own.wait_ready()
    assert {each: picture(own, *each) for each in expected} == expected


def test_variants_come_and_go_while_the_model_serves(own: Server, family: Path) -> None:
    variants = family / "tiny" / "variants"
    expected = picture(own, "tiny-lora", 7)
    restarts = own.http.get("/readyz").json()["restarts"]
    shutil.copytree(variants / "tiny-lora", variants / ".more.0000aaaa.export")
    (variants / ".more.0000aaaa.export").rename(variants / "more")
    wait_until(lambda: "more" in models(own))
    assert picture(own, "more", 7) == picture(own, "tiny-lora", 7) == expected
    shutil.rmtree(variants / "more")
    wait_until(lambda: "more" not in models(own))
    assert own.generate(prompt="a fox", model="more").status_code == 404
    assert picture(own, "tiny-lora", 7) == expected
    assert own.http.get("/readyz").json()["restarts"] == restarts


def test_variants_that_cannot_be(family: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family, tmp_path / "repository"))
    variants = folder / "tiny" / "variants"
    shutil.copytree(variants / "tiny-lora", variants / "alone")
    with pytest.raises(StartError, match="alone has the name of another model"):
        check_model(folder / "tiny")
    shutil.rmtree(variants / "alone")
    path = variants / "tiny-lora" / "1" / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "fp16"}))
    first, second = map(read_manifest, versions(folder))
    with pytest.raises(StartError, match=r"variant tiny-lora is for fp16 .* tiny for fp32"):
        check_alike(first, second, "openvino", "auto")
    (variants / "tiny-lora" / "1" / "transformer.onnx").unlink()
    with pytest.raises(StartError, match=r"transformer\.onnx is missing"):
        check_model(folder / "tiny")
