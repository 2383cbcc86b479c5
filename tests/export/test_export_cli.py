import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from export import verify
from export.cli import main
from export.compare import Tolerance
from export.repository import staged


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says on one line as it ends with 2."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("cdm-export: ")
    return lines[0]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sizes", "64"], "'64' is not WIDTHxHEIGHT"),
        (["--sizes", ""], "'' is not WIDTHxHEIGHT"),
        (["--sizes", "64x-64"], "is not WIDTHxHEIGHT"),
        (["--sizes", "64x64,60x60"], "60x60: width and height must be positive multiples of 8"),
        (["--sizes", "64x200"], "position embeddings end at 192 pixels"),
        (["--name", "../tiny"], "model name '../tiny'"),
        (["--name", ".tiny"], "model name '.tiny'"),
        (["--name", ""], "model name ''"),
        (["--max-batch", "0"], "--max-batch 0"),
        (["--components", "transformer,unet"], "'unet' is none of text_encoder, transformer"),
    ],
)
def test_options_that_cannot_be_met(
    capsys: pytest.CaptureFixture[str],
    student_folder: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert message in refused(capsys, student_folder, "--to", "onnx", "--out", out, *options)
    assert not out.exists()


def truncate(student: Path) -> None:
    path = student / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def break_a_weight(student: Path) -> None:
    path = student / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["norm_out.linear.weight"][0, 0] = float("inf")
    save_file(weights, path, metadata={"format": "pt"})


def change_class(student: Path) -> None:
    edit(student / "model_index.json", _class_name="PixArtAlphaPipeline")


def change_scheduler(student: Path) -> None:
    edit(student / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    edit(student / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate, "vae"),
        (break_a_weight, "weight norm_out.linear.weight has values that are not finite"),
        (change_class, "PixArtAlphaPipeline, not a flow-matching pipeline"),
        (change_scheduler, "expected FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_students_that_cannot_be_exported(
    capsys: pytest.CaptureFixture[str],
    student_copy: Path,
    exported: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    """What was exported before goes on as it is."""
    out = tmp_path / "out"
    shutil.copytree(exported, out / "tiny")
    before = snapshot(out)
    damage(student_copy)
    assert message in refused(capsys, student_copy, "--to", "onnx", "--out", out)
    assert snapshot(out) == before and [path.name for path in out.iterdir()] == ["tiny"]


def test_folders_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], student_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    nowhere = tmp_path / "nowhere"
    assert "does not exist" in refused(capsys, nowhere, "--to", "onnx", "--out", out)
    assert "not a diffusers folder" in refused(capsys, tmp_path, "--to", "onnx", "--out", out)
    kernel = "/proc/export"  # where not even root can make a folder
    assert "cannot write to" in refused(capsys, student_folder, "--to", "onnx", "--out", kernel)
    file = tmp_path / "file"
    file.touch()
    assert "cannot write to" in refused(capsys, student_folder, "--to", "onnx", "--out", file)
    (out / "tiny").mkdir(parents=True)
    (out / "tiny" / "notes").touch()
    assert "no model folder" in refused(capsys, student_folder, "--to", "onnx", "--out", out)


@pytest.mark.slow
def test_one_component_alone_is_not_for_serving(
    exported: Path, student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(student_folder), "--to", "onnx", "--components", "vae_decoder", "--out"]
    assert main([*command, str(tmp_path / "parts"), "--precision", "fp16"]) == 0
    folder = tmp_path / "parts" / "tiny"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert files == ["1/export.json", "1/vae_decoder.onnx"]
    contents = json.loads((folder / "1" / "export.json").read_text())
    assert list(contents["components"]) == ["vae_decoder"] and contents["precision"] == "fp16"
    capsys.readouterr()
    shutil.copytree(exported, tmp_path / "whole" / "tiny")
    assert "is a whole model" in refused(capsys, *command, tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(student_folder: Path, tmp_path: Path) -> None:
    """No file may grow beyond 4096 bytes, which to Python is an OSError as a full disk is."""
    process = subprocess.run(
        [sys.executable, "-m", "export.cli", student_folder, "--to", "onnx", "--out", tmp_path],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("cdm-export: cannot read or write the export in")
    assert list(tmp_path.iterdir()) == []


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow  # test_export_repository kills one that does nothing else
def test_a_killed_export_leaves_the_old_one(
    exported: Path,
    student_folder: Path,
    tmp_path: Path,
    run_export: Callable[..., subprocess.Popen[str]],
) -> None:
    shutil.copytree(exported, tmp_path / "tiny")
    before = snapshot(tmp_path)
    process = run_export(student_folder, tmp_path)
    while not list(tmp_path.glob(".tiny.*/1/tokenizer_1.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert len(snapshot(tmp_path)) > len(before)
    with staged(tmp_path, "other"):
        assert len(list(tmp_path.glob(".tiny.*"))) == 0
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_beyond_tolerance_ends_with_1_and_replaces_nothing(
    exported: Path,
    student_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(exported, tmp_path / "tiny")
    before = snapshot(tmp_path)
    monkeypatch.setitem(verify.TOLERANCES, "fp32", Tolerance(0.0, 1, 60))
    assert main([str(student_folder), "--to", "onnx", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert re.search(r"velocity .*✗", output.out)
    assert output.err.startswith("cdm-export: ") and output.err.count("\n") == 1
    assert snapshot(tmp_path) == before
