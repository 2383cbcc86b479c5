"""The whole way of ``cdm-bench size``, with a student that is none."""

import json
from pathlib import Path

import pytest

from benchmarks.cli import main


@pytest.mark.slow
def test_from_a_folder_to_served_pictures(student: Path, tmp_path: Path) -> None:
    sizes = ["--sizes", "64x64", "72x56"]
    assert main(["size", str(student), *sizes, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("size-*.json")
    result = json.loads(path.read_text())
    parts = result["parts"]
    assert list(parts) == ["export", "diffusers", "server"]
    assert all(part["peak_gb"] > 0.1 for part in parts.values())
    assert parts["export"]["verification"]["level"] == "quick"
    assert set(parts["server"]["pictures"]) == {"64x64", "72x56"}
    for figures in parts["server"]["pictures"].values():
        assert figures["psnr_db"] > 25 and figures["same_again"]


def test_wants_a_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "is no folder, and no name: " in capsys.readouterr().err
