import hashlib
import json
from pathlib import Path

import pytest

from cdm_serve.engine.manifest import read_manifest
from cdm_serve.errors import StartError

FILES = (
    "text_encoder.onnx",
    "transformer.onnx",
    "transformer.onnx.data",
    "vae_decoder.onnx",
    "tokenizer_0.json",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model_repository" / "small" / "1"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(name)
    save(folder, description())
    return folder


def description() -> dict:
    grids = {"1": [1.0, 0.0], "2": [1.0, 0.75, 0.0]}
    return {
        "format": 1,
        "name": "small",
        "architecture": "sd3",
        "fingerprint": "f00d",
        "sizes": ["64x32"],
        "default_size": "64x32",
        "default_steps": 2,
        "latents": {"channels": 8, "downscale": 4},
        "max_batch": 16,
        "runtimes": ["openvino-f32"],
        "sigmas": {"64x32": grids},
        "tokenizers": [stamp("tokenizer_0.json") | {"length": 24, "pad_id": 1}],
        "components": {
            "text_encoder": stamp("text_encoder.onnx") | {"outputs": {"prompt_embeds": {}}},
            "transformer": stamp("transformer.onnx") | {"data": stamp("transformer.onnx.data")},
            "vae_decoder": stamp("vae_decoder.onnx"),
        },
    }


def stamp(name: str) -> dict:
    return {"file": name, "sha256": hashlib.sha256(name.encode()).hexdigest()}


def save(folder: Path, value: object) -> None:
    (folder / "export.json").write_text(json.dumps(value))


def test_reads_what_an_export_says(folder):
    manifest = read_manifest(folder)
    assert manifest.latent_shape("64x32") == (8, 8, 16)
    assert manifest.sigmas["64x32"][2] == (1.0, 0.75, 0.0)
    assert manifest.max_steps == 2
    assert manifest.components["transformer"] == folder / "transformer.onnx"
    assert manifest.conditions == ("prompt_embeds",)
    assert manifest.tokenizers[0].pad_id == 1 and not manifest.tokenizers[0].quotation
    assert (manifest.runtimes, manifest.max_batch) == (("openvino-f32",), 16)


def test_engines_are_checked_like_graphs(folder):
    (folder / "transformer.plan").write_text("transformer.plan")
    engines = {"components": {"transformer": stamp("transformer.plan")}}
    save(folder, description() | {"tensorrt": engines})
    read_manifest(folder)
    (folder / "transformer.plan").write_text("another")
    with pytest.raises(StartError, match=r"transformer\.plan is not the file"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["export.json", *FILES])
def test_names_a_missing_file_and_the_command(folder, name):
    (folder / name).unlink()
    with pytest.raises(StartError, match=rf"{name} is missing.*cdm-export .* --out .*repository`"):
        read_manifest(folder)


@pytest.mark.parametrize("name", FILES)
def test_names_a_file_that_is_not_the_exported_one(folder, name):
    (folder / name).write_text("another")
    with pytest.raises(StartError, match=rf"{name} is not the file.*cdm-export"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("format", 2, "has format 2, this version reads format 1"),
        ("default_size", "8x8", "default_size 8x8"),
        ("default_steps", 3, "default_steps 3"),
        ("sigmas", {"64x32": {"2": [1.0, 0.0]}}, "for 2 steps have 2 values"),
        ("sigmas", {}, "64x32"),
        ("latents", None, "NoneType"),
        ("runtimes", None, "NoneType"),
        (
            "tokenizers",
            [stamp("tokenizer_0.json") | {"length": 1, "pad_id": 0, "quotation": "x"}],
            "quotation 'x' is unknown",
        ),
    ],
)
def test_says_what_is_wrong_in_the_description(folder, key, value, complaint):
    save(folder, description() | {key: value})
    with pytest.raises(StartError, match=rf"{complaint}.*cdm-export"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_refuses_what_is_no_description(folder, text):
    (folder / "export.json").write_text(text)
    with pytest.raises(StartError, match=r"cannot be read.*cdm-export"):
        read_manifest(folder)
