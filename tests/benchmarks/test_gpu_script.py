"""The GPU script with tiny networks on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd="/")


@pytest.mark.slow
def test_runs_as_a_plain_file(tmp_path: Path) -> None:
    parts = ["limits", "bf16", "onnxruntime", "tensorrt", "update"]
    done = run("--tiny", "--out", str(tmp_path), "--only", *parts)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["parts"]) == parts
    found = result["parts"]
    assert found["limits"]["flops_at_batch_1"]["step 64"] > 0
    points = found["bf16"]["points"]
    assert {point["stage"] for point in points} == {"text", "step", "decode", "picture"}
    assert all(point["milliseconds"] > 0 for point in points)
    assert [load["clients"] for load in found["onnxruntime"]["loads"]] == [1, 16]
    assert all(load["images_per_second"] > 0 for load in found["onnxruntime"]["loads"])
    assert "tensorrt" in found["tensorrt"]["absent"] or torch.cuda.is_available()
    (attempt,) = found["update"]["attempts"]
    assert attempt["accumulate"] == 1 and len(attempt["seconds"]) == 2


def test_full_size_needs_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    done = run("--out", str(tmp_path))
    assert done.returncode == 2
    assert "torch sees no GPU here; --tiny needs none" in done.stderr
    assert not (tmp_path / "gpu.json").exists()
