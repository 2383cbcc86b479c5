import hashlib
import json
import os
from pathlib import Path

import pytest

from cdm_serve.engine import manifest
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
        "precision": "fp32",
        "sigmas": {"64x32": grids},
        "tokenizers": [stamp("tokenizer_0.json") | {"length": 24, "pad_id": 1}],
        "components": {
            "text_encoder": stamp("text_encoder.onnx") | {"outputs": {"prompt_embeds": {}}},
            "transformer": stamp("transformer.onnx") | {"data": stamp("transformer.onnx.data")},
            "vae_decoder": stamp("vae_decoder.onnx"),
        },
    }


def stamp(name: str) -> dict:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"file": name, "sha256": digest, "bytes": len(name)}


def save(folder: Path, value: object) -> None:
    (folder / "export.json").write_text(json.dumps(value))


def test_reads_what_an_export_says(folder):
    read = read_manifest(folder)
    assert read.latent_shape("64x32") == (8, 8, 16)
    assert read.sigmas["64x32"][2] == (1.0, 0.75, 0.0)
    assert read.max_steps == 2
    assert read.components["transformer"] == folder / "transformer.onnx"
    assert read.conditions == ("prompt_embeds",)
    assert read.tokenizers[0].pad_id == 1 and not read.tokenizers[0].quotation
    assert (read.runtimes, read.max_batch) == (("openvino-f32",), 16)


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


def test_bytes_are_looked_at_only_where_something_may_have_changed(folder, monkeypatch):
    """Tens of gigabytes take minutes: after the export only what is newer than its description."""
    hashed = []
    digest = manifest.file_sha256
    monkeypatch.setattr(
        manifest, "file_sha256", lambda path: hashed.append(path.name) or digest(path)
    )
    written = (folder / "export.json").stat().st_mtime
    for name in FILES:
        os.utime(folder / name, (written - 9, written - 9))
    read_manifest(folder)
    assert not hashed
    os.utime(folder / "vae_decoder.onnx", (written + 9, written + 9))
    read_manifest(folder)
    assert hashed == ["vae_decoder.onnx"]
    read_manifest(folder, full=True)
    assert set(hashed) == set(FILES)


def test_a_full_check_sees_what_was_changed_behind_its_date(folder):
    written = (folder / "export.json").stat().st_mtime
    path = folder / "transformer.onnx.data"
    path.write_text("transformer.onnx.dATA")
    os.utime(path, (written - 9, written - 9))
    read_manifest(folder)
    with pytest.raises(StartError, match=r"transformer\.onnx\.data is not the file.*sha256"):
        read_manifest(folder, full=True)


@pytest.mark.parametrize("name", ["transformer.onnx", "transformer.onnx.data"])
def test_links_to_weights_are_refused_by_name(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "blob")
    (folder / name).symlink_to(tmp_path / "blob")
    command = f"cp --remove-destination {tmp_path / 'blob'} {folder / name}"
    with pytest.raises(StartError, match=f"{name} is a link.*{command}"):
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


def test_sizes_that_the_model_divides(folder: Path) -> None:
    save(folder, description() | {"any_size": {"multiple": 8, "longest_side": 96}})
    found = read_manifest(folder)
    assert found.grids("96x8") == found.sigmas["64x32"]
    for size in ("100x32", "104x32", "0x32", "96", "08x32", "96x-8"):
        assert found.grids(size) is None
    assert found.latent_shape("96x8") == (8, 2, 24)
    save(folder, description())
    assert read_manifest(folder).grids("96x8") is None


def test_what_edits_pictures_has_an_encoder_of_them(folder: Path) -> None:
    changed = description() | {"views": {"64x32": [[32, 16, "LANCZOS"], [28, 28, "BICUBIC"]]}}
    save(folder, changed)
    with pytest.raises(StartError, match="no component vae_encoder"):
        read_manifest(folder)
    (folder / "vae_encoder.onnx").write_text("vae_encoder.onnx")
    changed["components"]["vae_encoder"] = stamp("vae_encoder.onnx")
    save(folder, changed)
    found = read_manifest(folder)
    assert found.needs_picture and found.card().needs_picture and found.edits
    assert found.views["64x32"] == ((32, 16, "LANCZOS"), (28, 28, "BICUBIC"))
