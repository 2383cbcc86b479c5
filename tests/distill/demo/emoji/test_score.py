"""From a pipeline folder to its scores, a table and a picture."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.demo.emoji.cli import main
from distill.demo.emoji.composer import drawn
from distill.demo.emoji.judge import load_judge
from distill.demo.emoji.score import held_out, save_marked

MODELS = Path(__file__).parents[4] / "models"


def test_scores_the_shipped_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, grid = tmp_path / "scores.json", tmp_path / "grid.png"
    arguments = ["score", str(MODELS / "emoji-student"), "--judge", str(MODELS / "emoji-judge")]
    options = ["--subjects", "48", "--prompts", "24", "--out", str(out), "--grid", str(grid)]
    assert main([*arguments, *options]) == 0
    scores = json.loads(out.read_text())
    assert (scores["pictures"], scores["steps"], scores["guidance"]) == (24, 4, 1.0)
    asked = scores["accuracy"]
    assert asked["subject"]["of"] + asked["pair"]["of"] == 24
    assert asked["background"]["rate"] > 0.9
    assert scores["frechet"] > scores["frechet_floor"] > 0
    assert scores["through_vae"]["background"]["rate"] > 0.9
    assert "95 % interval" in capsys.readouterr().out
    with Image.open(grid) as picture:
        assert picture.size == (12 * 68, 2 * 68)


def test_what_is_wrong_has_a_red_frame(tmp_path: Path) -> None:
    asked = held_out(2, 64)
    shown = torch.cat([drawn(asked[:1], 0), torch.zeros(1, 3, 64, 64)])
    save_marked(shown, asked, load_judge(MODELS / "emoji-judge"), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.getpixel((0, 0)) == (255, 255, 255)
        assert grid.getpixel((68, 0)) == (219, 20, 31)


def test_no_pipeline_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = str(MODELS / "emoji-judge")
    assert main(["score", str(tmp_path), "--judge", judge, "--prompts", "2"]) == 2
    assert "model_index.json" in capsys.readouterr().err


def test_no_judge_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path), "--judge", str(tmp_path)]) == 2
    assert "python -m distill.demo.emoji judge" in capsys.readouterr().err
