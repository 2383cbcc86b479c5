"""``--dry-run``: what it prints, without loading weights, and the mistakes it finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pipelines import tiny_longcat

from distill.cli import main


@pytest.fixture
def recipe_file(write_recipe: Callable[..., Path], teacher: Path, tmp_path: Path) -> Path:
    """Its teacher has configurations and tokenizers only."""
    bare = tmp_path / "teacher"
    shutil.copytree(teacher, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    return write_recipe(
        tmp_path,
        """
        batch = 8
        """,
        teacher=bare,
    )


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_what_it_prints(
    recipe_file: Path, adapter, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = [str(recipe_file), "--dry-run", "--processes", "4", "--set", "loss.alpha=3"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    rows = {
        cells[1]: cells[2:-1]
        for line in printed.splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")]) > 1
    }
    assert rows["loss.alpha"] == ["3.0", ""] and rows["loss.ca"] == ["1.0", "default"]
    parameters = sum(p.numel() for p in adapter.transformer.parameters())
    assert rows["transformer"][0] == rows["trained in the student"][0] == f"{parameters:,}"
    assert rows["fake teacher's own passes"] == ["6"]
    assert len(rows["optimiser states"]) == 4  # data parallel and FSDP2, recomputed or not
    # The network in two bytes a weight is most of it; five prompts are few enough for each.
    sizes = {
        name: float(rows[name][0]) for name in ("at most", "student that is saved, main process")
    }
    assert sizes["student that is saved, main process"] == round(2 * parameters / 2**30, 4)
    assert "2 samples at a time in each process, latents 4 x 16 x 16" in printed
    assert "Prompts: 5; 5 embeddings at a time" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_lora_trains_less(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe_file), "--dry-run", "--set", "lora.rank=2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    numbers = {
        cells[1].strip(): int(cells[2].replace(",", ""))
        for line in lines
        if (cells := line.split("│"))[1].strip() in ("transformer", "trained in the student")
    }
    assert 0 < numbers["trained in the student"] < numbers["transformer"] / 3


def test_longcat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_longcat(tmp_path / "longcat")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    (tmp_path / "tiny.toml").write_text(
        f'teacher = "{folder}"\noutput = "x"\nprompts = "owner/name"\nheight = 64\nwidth = 64\n'
    )
    assert main([str(tmp_path / "tiny.toml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "latents 16 x 16 x 16" in printed and "Prompts: a dataset; 4,096 embeddings" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "loss.alfa=3"], "unknown recipe key loss.alfa"),
        (["--set", "height=60"], "size 64x60: width and height must be positive multiples of 8"),
        (["--processes", "3"], "recipe key batch = 8 must be a multiple of 3"),
        (["--set", "prompts=nowhere.txt"], "prompt file nowhere.txt cannot be read"),
        (["--set", "teacher=/nowhere/teacher"], "/nowhere/teacher is no folder here"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(recipe_file), "--dry-run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cdm-distill: error: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PixArtAlphaPipeline"}, "not a flow-matching pipeline"),
        ({"transformer": ["diffusers", "NoSuchNetwork"]}, "NoSuchNetwork, which is not known here"),
    ],
)
def test_a_teacher_that_is_none(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    path = recipe_file.parent / "teacher" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main([str(recipe_file), "--dry-run"]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
