"""Stages in every runtime, and the floor beside them."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cli import RUNTIMES as CHOICES
from benchmarks.cli import main
from benchmarks.engine import EnginePlan, _add_floor
from benchmarks.exported import find_export
from benchmarks.stages import RUNTIMES, EngineStages, gemm_rate, repeated
from benchmarks.torch_stages import TorchStages
from cdm_serve.engine.runtimes.openvino import OpenVino


def test_command_offers_every_runtime() -> None:
    assert CHOICES == RUNTIMES


@pytest.mark.slow
def test_command_measures_beside_the_floor(
    repository: Path, student: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "engine.json"
    where = ["--repository", str(repository), "--student", str(student), "--sizes", "64x64"]
    runtimes = ["torch f32", "openvino bf16", "onnxruntime cuda"]
    command = ["engine", *where, "--runtimes", *runtimes, "--quick", "--out", str(out)]
    assert main(command) == 0
    result = json.loads(out.read_text())
    assert "CUDAExecutionProvider" in result["absent"]["onnxruntime cuda"]
    points = {
        (point["runtime"], point["stage"], point["batch"]): point for point in result["points"]
    }
    assert len(points) == 2 * 4 * 2
    for point in points.values():
        assert point["milliseconds"]["median"] > 0
        assert point["floor_milliseconds"] > 0
    assert sorted(result["encoding"]["64x64"]) == ["jpeg", "png", "webp"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "without onnxruntime cuda" in capsys.readouterr().out


def test_both_make_the_same_shapes(student: Path, repository: Path) -> None:
    manifest = find_export(repository, None).manifest
    torch_stages = TorchStages(student, manifest, low=False)
    ours = EngineStages(manifest, OpenVino("f32"))
    for stage in ("step", "decode", "picture"):
        one, other = (getattr(each, stage)(2, "96x64") for each in (torch_stages, ours))
        assert tuple(one.shape) == tuple(other.shape), stage


def test_operations_are_those_of_the_layers(student: Path, repository: Path) -> None:
    """The text encoders' products, by hand: two CLIPs of three layers, 24 tokens, width 32."""
    counted = TorchStages(student, find_export(repository, None).manifest, low=False).count("64x64")
    tokens, width, inner = 24, 32, 37
    layer = 4 * width * width * tokens + 2 * width * inner * tokens + 2 * tokens * tokens * width
    projection = width * 32
    assert counted["text"]["flops"] == 2 * 2 * (3 * layer + projection)


def test_gemm_is_a_product(manifest) -> None:
    stages = EngineStages(manifest, OpenVino("f32"))
    weights = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    np.testing.assert_allclose(stages.gemm(512)(), weights.sum(0), atol=1e-3)
    assert gemm_rate(stages, 0.0)["flops_per_second"] > 1e8


def test_floor_is_the_longer_of_operations_and_weights() -> None:
    stages = {
        "text": {"flops": 10, "parameters": 1000},
        "step": {"flops": 4000, "parameters": 10},
        "decode": {"flops": 500, "parameters": 10},
    }
    limits = {
        "stages": {"64x64": stages},
        "bytes_per_second": 1e6,
        "gemm": {
            "torch f32": {"flops_per_second": 1e6},
            "openvino bf16": {"flops_per_second": 1e6},
        },
    }

    def floor(runtime: str, stage: str, batch: int) -> float:
        point = {"runtime": runtime, "stage": stage, "size": "64x64", "batch": batch}
        _add_floor(point, limits, steps=4)
        return point["floor_milliseconds"]

    assert floor("torch f32", "text", 1) == pytest.approx(4.0)
    assert floor("openvino bf16", "text", 1) == pytest.approx(2.0)
    assert floor("torch f32", "step", 2) == pytest.approx(8.0)
    assert floor("torch f32", "picture", 1) == pytest.approx(4.0 + 4 * 4.0 + 0.5)


def test_points_are_every_stage_size_and_batch(repository: Path) -> None:
    plan = EnginePlan(find_export(repository, None), Path(), batches=(1, 2), rounds=3)
    assert len(plan.points) == 2 + 3 * 2 * 2  # the text has no size
    assert plan.runs == 3 * len(plan.points)


def test_a_run_is_repeated_for_its_time() -> None:
    calls: list[int] = []
    assert repeated(lambda: calls.append(1), 0.0)["milliseconds"] < 100
    assert len(calls) == 3  # one that warms up, and two
