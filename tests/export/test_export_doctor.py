"""``cdm-export doctor`` tells what this machine has, what a student takes, and what is missing."""

import sys
from collections import namedtuple
from pathlib import Path

import pytest
from diffusers import SD3Transformer2DModel

from export import doctor
from export.cli import main

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
    weights = doctor._weights(student / "transformer")
    held = {**dict(network.named_parameters()), **network.state_dict()}
    assert weights == sum(tensor.numel() for tensor in held.values())
    assert "✓ torch 2." in said and "✓ diffusers 0." in said and f"free at {tmp_path}" in said
    assert "weights, 0." in said and "- TensorRT not here" in said


def test_what_is_missing_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, said = examined(capsys)
    assert code == 2 and said.endswith("it would not export: see onnxscript")
    assert "pip install 'cdm-serve[export]'" in said


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
