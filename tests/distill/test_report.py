"""The report at the end of a run, read as a browser reads it."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from distill.errors import DistillError
from distill.files import save_grid
from distill.report import write_report

RECORDS: list[dict[str, float]] = [
    {"update": 0, "distance": 0.09, "brightness": 0.55, "teacher_brightness": 0.6},
    {"update": 10, "fake": 0.4, "ca": 4.0, "dm": 0.5, "cdm": 0.6, "gap": 0.7},
    {"update": 10, "distance": 0.02, "brightness": 0.58},
    {"update": 20, "fake": 0.3, "ca": 3.0, "dm": 0.4, "cdm": 0.5, "gap": 0.6},
    {"update": 20, "distance": 0.03, "brightness": 0.57},
]


def charts(page: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]
    return {str(svg.find("text").text): svg for svg in found}


def test_curves_with_the_teachers_level_and_the_choice(tmp_path: Path) -> None:
    page = write_report(tmp_path, RECORDS, saved=10).read_text()
    assert "after update 10, at distance 0.02: the nearest" in page
    assert "after update 20, the last, it is 0.03" in page
    drawn = charts(page)
    assert set(drawn) == {
        "distance to the guided teacher",
        "fake teacher's relative gap to the teacher",
        "brightness",
        "losses of the student",
        "loss of the fake teacher",
    }
    points = drawn["distance to the guided teacher"].find("polyline").get("points").split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == 3 and heights[1] > heights[2] > heights[0]  # down is less
    assert len(drawn["losses of the student"].findall("polyline")) == 3
    dashes = [path.get("stroke-dasharray") for path in drawn["brightness"].findall("path")]
    assert dashes == ["2 3", "7 4"]  # the student that was saved, the teacher's level


def test_grids_by_update_and_steps(tmp_path: Path) -> None:
    save_grid(torch.rand(2, 3, 8, 8), tmp_path / "teacher-00000000.png")
    for steps in (1, 4, 16):
        for update in (20, 100):
            save_grid(torch.rand(2, 3, 8, 8), tmp_path / f"preview-{steps}-{update:08d}.png")
    page = write_report(tmp_path, RECORDS, saved=20).read_text()
    assert "at distance 0.03, the last" in page
    shown = re.findall(r'src="([^"]+)"', page)
    assert shown == [
        "teacher-00000000.png",
        *(f"preview-{steps}-{update:08d}.png" for update in (20, 100) for steps in (1, 4, 16)),
    ]
    assert all((tmp_path / name).exists() for name in shown)


def test_a_run_without_evaluation(tmp_path: Path) -> None:
    records = [r for r in RECORDS if "distance" not in r]
    assert "nothing was evaluated" in write_report(tmp_path, records, saved=20).read_text()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match="cannot be written"):
        write_report(tmp_path / "file" / "run", RECORDS, saved=10)
