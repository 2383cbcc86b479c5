import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from students import SIZES

from export.manifest import ANOTHER_SIZE, _grids
from export.student import Student


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_serving_reads(manifest: dict[str, Any]) -> None:
    assert {key: manifest[key] for key in ("format", "name", "architecture", "opset")} == {
        "format": 1,
        "name": "tiny",
        "architecture": "sd3",
        "opset": 20,
    }
    assert manifest["precision"] == "fp32" and manifest["max_batch"] == 4
    assert manifest["runtimes"][0] == "openvino-f32"
    assert "onnxruntime" not in manifest["runtimes"]  # compared with, not served on the CPU
    assert manifest["sizes"] == ["64x64", "72x56"]
    assert manifest["default_size"] == "64x64"
    assert manifest["default_steps"] == 4
    assert manifest["latents"] == {"channels": 4, "downscale": 4}
    assert manifest["any_size"] == {"multiple": 8, "longest_side": 192}
    shapes = {
        name: {port: entry["shape"] for port, entry in (c["inputs"] | c["outputs"]).items()}
        for name, c in manifest["components"].items()
    }
    assert shapes == {
        "text_encoder": {
            "input_ids_0": ["batch", 24],
            "input_ids_1": ["batch", 24],
            "input_ids_2": ["batch", 16],
            "prompt_embeds": ["batch", 40, 72],
            "pooled": ["batch", 64],
        },
        "transformer": {
            "latents": ["batch", 4, "height", "width"],
            "sigma": ["batch"],
            "prompt_embeds": ["batch", 40, 72],
            "pooled": ["batch", 64],
            "velocity": ["batch", 4, "2*((height//2))", "2*((width//2))"],
        },
        "vae_decoder": {
            "latents": ["batch", 4, "height", "width"],
            "image": ["batch", "4*height", "4*width", 3],
        },
        "vae_encoder": {
            "image": ["batch", "height", "width", 3],
            "latents": ["batch", 4, "(height//4)", "(width//4)"],
        },
    }
    assert manifest["components"]["vae_decoder"]["outputs"]["image"]["dtype"] == "uint8"


def test_hashes_are_of_the_files(exported: Path, manifest: dict[str, Any]) -> None:
    stamped = [*manifest["components"].values(), *manifest["tokenizers"]]
    assert [entry["sha256"] for entry in stamped] == [
        sha256(exported / "1" / entry["file"]) for entry in stamped
    ]
    digests = "".join(entry["sha256"] for entry in stamped)
    assert manifest["fingerprint"] == hashlib.sha256(digests.encode()).hexdigest()


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_sigmas_are_the_schedulers_own(manifest: dict[str, Any], steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    for size in manifest["sizes"]:
        assert list(manifest["sigmas"][size]) == [str(i) for i in range(1, 17)]
        assert manifest["sigmas"][size][str(steps)] == scheduler.sigmas.tolist()


@pytest.mark.slow
def test_the_same_student_gives_the_same_files(
    exported: Path,
    student_folder: Path,
    tmp_path: Path,
    run_export: Callable[..., subprocess.Popen[str]],
) -> None:
    """From another process, with another hash seed, into another folder."""
    process = run_export(student_folder, tmp_path, PYTHONHASHSEED="12345")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    second = tmp_path / "tiny"
    files = sorted(path.relative_to(exported) for path in exported.rglob("*.*"))
    assert files == sorted(path.relative_to(second) for path in second.rglob("*.*"))
    assert [sha256(exported / file) for file in files] == [sha256(second / file) for file in files]


def test_nothing_in_it_names_this_machine(exported: Path, student_folder: Path) -> None:
    text = (exported / "1" / "export.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # Infinity and NaN are no JSON
    for folder in (Path.home(), Path.cwd(), student_folder, exported.parent):
        assert str(folder) not in text


def test_sigmas_that_depend_on_the_size_are_known_for_the_exported_ones_alone(
    longcat: Student, student: Student
) -> None:
    assert _grids(longcat, SIZES[0]) != _grids(longcat, ANOTHER_SIZE)
    assert _grids(student, SIZES[0]) == _grids(student, ANOTHER_SIZE)
