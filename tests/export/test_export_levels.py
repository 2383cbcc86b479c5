"""How far an export is compared: stamped, and enough to notice a wrong graph."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from students import SIZES, plan_of, verified

from cdm_serve.engine.manifest import read_manifest
from export import reference
from export.cli import main
from export.reference import _picture, _staged
from export.request import Level
from export.student import Student, load_student


@pytest.mark.slow
def test_none_is_stamped_and_served(student_folder: Path, exported: Path, tmp_path: Path) -> None:
    options = ["--to", "onnx", "--verify", "none", "--out", str(tmp_path)]
    assert main([str(student_folder), *options]) == 0
    stamped = json.loads((tmp_path / "tiny" / "1" / "export.json").read_text())
    assert stamped["verification"]["level"] == "none"
    assert "openvino-f32" in stamped["runtimes"]
    assert read_manifest(tmp_path / "tiny" / "1").card().verified == "none"
    # The same files when they are compared.
    compared = json.loads((exported / "1" / "export.json").read_text())
    assert compared["fingerprint"] == stamped["fingerprint"]


def test_quick_compares_the_smallest_size_with_the_same_picture(
    student: Student, student_folder: Path, exported: Path
) -> None:
    level: Level = "quick"
    plan = replace(plan_of(), level=level)
    found = verified(student, exported / "1", plan)
    assert not found.failures
    assert plan.compared_sizes == (SIZES[1],) and plan.compared_batches == [2]
    assert {check.size for check in found.checks} == {None, str(SIZES[1])}
    assert np.array_equal(_staged(student, SIZES[0]), _picture(student, SIZES[0]))
    # Weights of two bytes are compared in float32, and have nothing of it afterwards.
    half = load_student(student_folder, dtype=torch.float16)
    picture = _staged(half, SIZES[0]).astype(float)
    assert np.abs(picture - _picture(student, SIZES[0])).max() <= 8
    assert half.adapter.transformer.dtype == torch.float16


def test_quick_notices_another_students_graphs(
    student: Student, exported: Path, tmp_path: Path, student_folder: Path
) -> None:
    other = load_student(student_folder)
    with torch.no_grad():
        other.adapter.pipeline.transformer.proj_out.weight.mul_(1.1)
    assert verified(other, exported / "1", replace(plan_of(), level="quick")).failures


def test_int8_is_never_served_unseen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--precision", "int8", "--calibration", "x", "--verify", "none"]
    assert main(["x/y", "--to", "onnx", "--out", str(tmp_path), *options]) == 2
    assert "leave --verify none out" in capsys.readouterr().err


def test_all_of_a_network_is_on_the_device_while_it_computes(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``meta`` is a device without contents, whose tensors do not mix with the CPU's either."""
    monkeypatch.setattr(
        reference, "_arrays", lambda tensors: {n: str(t.device) for n, t in tensors.items()}
    )
    places = [w.data_ptr() for n in student.adapter.networks.values() for w in n.parameters()]
    device: Any = "meta"
    for component, size in (
        ("text_encoder", None),
        ("transformer", SIZES[0]),
        ("vae_encoder", SIZES[0]),
    ):
        case = reference._case(student, component, size, 1, device)
        assert set(case.expected.values()) == {"meta"}, component
    monkeypatch.setattr(
        student.adapter.pipeline.image_processor,
        "postprocess",
        lambda pictures, **_: [np.array(str(pictures.device))],
    )
    case = reference._case(student, "vae_decoder", SIZES[0], 2, device)
    assert set(case.expected["image"]) == {"meta"}
    assert set(_staged(student, SIZES[0], device)) == {"meta"}
    assert places == [
        w.data_ptr() for n in student.adapter.networks.values() for w in n.parameters()
    ]


def test_a_device_that_is_not_there(
    student_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--to", "onnx", "--device", "cuda", "--out", str(tmp_path / "out")]
    assert main([str(student_folder), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cdm-export: --device cuda: torch ") and line.endswith(
        "use --device cpu"
    )
    assert not (tmp_path / "out").exists()
