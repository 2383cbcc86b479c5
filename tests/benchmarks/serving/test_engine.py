"""Stages in every runtime."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.serving.engine import EnginePlan
from benchmarks.serving.exported import find_export
from benchmarks.serving.stages import EngineStages, repeated
from benchmarks.serving.torch_stages import student_stages
from cdm_serve.engine.pipeline import Pipeline


@pytest.mark.slow
def test_command_measures_what_is_there(
    repository: Path, student: Path, tmp_path: Path, capsys
) -> None:
    where = ["--repository", str(repository), "--student", str(student), "--sizes", "64x64"]
    runtimes = ["torch f32", "openvino bf16", "onnxruntime cuda"]
    command = ["engine", *where, "--runtimes", *runtimes, "--quick", "--out", str(tmp_path)]
    assert main(command) == 0
    (path,) = tmp_path.glob("engine-*.json")
    result = json.loads(path.read_text())
    assert "CUDAExecutionProvider" in result["absent"]["onnxruntime cuda"]
    points = {
        (point["runtime"], point["stage"], point["batch"]): point for point in result["points"]
    }
    assert len(points) == 2 * 4 * 2 + 2  # torch has no tiny decoder
    assert all(point["milliseconds"]["median"] > 0 for point in points.values())
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "without onnxruntime cuda" in capsys.readouterr().out


def test_an_unknown_runtime_is_one_line(repository: Path, tmp_path: Path, capsys) -> None:
    where = ["--repository", str(repository), "--out", str(tmp_path)]
    assert main(["engine", *where, "--runtimes", "openvino"]) == 2
    assert "'openvino' is unknown; known: torch f32, torch bf16, openvino f32" in (
        capsys.readouterr().err
    )


def test_a_model_that_edits_is_one_line(repository: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(repository, tmp_path / "edits")
    path = tmp_path / "edits" / "tiny" / "1" / "export.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"views": {size: [] for size in data["sizes"]}}))
    where = ["--repository", str(tmp_path / "edits"), "--out", str(tmp_path)]
    for command in ("engine", "overhead", "peers", "soak"):
        assert main([command, *where]) == 2
        assert "tiny edits pictures" in capsys.readouterr().err


def test_both_make_the_same_shapes(student: Path, pipeline: Pipeline) -> None:
    torch_stages, ours = student_stages(student, 4, low=False), EngineStages(pipeline)
    for stage in ("decode", "picture"):
        one, other = (getattr(each, stage)(2, "96x64") for each in (torch_stages, ours))
        assert one.shape == other.shape == (2, 64, 96, 3), stage
        assert one.dtype == other.dtype
    assert tuple(torch_stages.step(2, "96x64").shape) == ours.step(2, "96x64").shape


def test_points_are_every_stage_size_and_batch(repository: Path) -> None:
    exported = find_export(repository, None)
    plan = EnginePlan(exported, Path(), (), exported.manifest.sizes, batches=(1, 2))
    assert len(plan.points) == 2 + 4 * 2 * 2  # the text has no size


def test_a_run_is_repeated_for_its_time() -> None:
    calls: list[int] = []
    assert repeated(lambda: calls.append(1), 0.0)["milliseconds"] < 100
    assert len(calls) == 3  # one that warms up, and two
