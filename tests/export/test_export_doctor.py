"""``cdm-export doctor`` tells what this machine has, what a student takes, and what is missing."""

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from diffusers import SD3Transformer2DModel

from export import doctor, memory
from export.cli import main
from export.memory import weights as weights_of

MODELS = Path(__file__).parents[2] / "models"


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["doctor", *arguments])
    return code, "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def test_a_machine_that_would_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    student = MODELS / "emoji-student"
    code, said = examined(capsys, str(student), "--out", str(tmp_path / "not" / "yet"))
    assert code == 0 and said.endswith("it would export")
    network = SD3Transformer2DModel.from_pretrained(student / "transformer")
    weights = weights_of(student / "transformer")
    held = {**dict(network.named_parameters()), **network.state_dict()}
    assert weights == sum(tensor.numel() for tensor in held.values())
    assert "✓ torch 2." in said and "✓ diffusers 0." in said and f"free at {tmp_path}" in said
    assert "weights, 0." in said and "- TensorRT not here" in said
    part = str(student / "transformer")
    assert examined(capsys, part)[0] == 2
    code, based = examined(capsys, part, "--base", str(student), "--out", str(tmp_path))
    assert code == 0 and next(line for line in said.splitlines() if "student" in line) in based


def test_what_is_missing_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, said = examined(capsys)
    assert code == 2 and said.endswith("it would not export: see onnxscript")
    assert "pip install 'cdm-serve[export]'" in said


def test_engines_need_a_gpu_and_tensorrt(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = examined(capsys, "--to", "tensorrt")
    assert code == 2 and said.endswith("it would not export: see GPU, TensorRT")
    assert "pip install 'cdm-serve[tensorrt]'" in said


def test_an_export_says_first_what_it_takes_where_that_is_too_much(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is loaded: nothing is, here."""

    class Loaded(Exception):
        pass

    def load(*_: object) -> None:
        raise Loaded

    monkeypatch.setattr("export.exporter.export", load)
    options = [str(MODELS / "emoji-student"), "--to", "onnx", "--out", str(tmp_path)]
    quick = ["--verify", "quick", "--precision", "fp16"]
    for free, more, expected in (
        (2**40, [], ""),
        (60 * 2**20, [], "--verify quick --precision bf16 (or fp16) takes 0.1"),
        (60 * 2**20, quick, ""),
        (60 * 2**20, ["--verify", "quick"], "takes 0."),
        (2**20, quick, "end other programs"),
    ):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        with pytest.raises(Loaded):
            main([*options, *more])
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == bool(expected)
        assert not said or said.startswith("cdm-export: this takes about 0.")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("nothing of the kind", "is no safetensors file, or a part of one"),
    ],
)
def test_weights_of_a_base_that_are_none_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, contents: str, expected: str
) -> None:
    student, base = MODELS / "emoji-student", tmp_path / "base"
    shutil.copytree(student, base)
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_text(contents)
    command = [str(student / "transformer"), "--base", str(base), "--out", str(tmp_path / "out")]
    assert main([*command, "--to", "onnx"]) == 2
    assert capsys.readouterr().err.startswith(f"cdm-export: {file} {expected}")


def test_a_student_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = str(MODELS / "emoji-student")
    for free, expected in ((60, "add --verify quick"), (1, "more memory is needed")):
        monkeypatch.setattr(doctor, "available", lambda free=free: free * 2**20)
        code, said = examined(capsys, student)
        assert code == 2 and expected in said
    monkeypatch.setattr(doctor, "available", lambda: 2**40)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(2**20))
    code, said = examined(capsys, student)
    assert code == 2 and "choose another --out" in said
    assert examined(capsys, "/nowhere/student")[0] == 2
