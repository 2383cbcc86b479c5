import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import PROMPTS

from benchmarks.engine_pictures import draw
from benchmarks.export_precision import main
from cdm_serve.engine.pipeline import Pipeline
from distill.adapters import load_adapter
from export.compare import psnr_db


def test_the_engine_draws_what_diffusers_draws(pipeline: Pipeline, student: Path) -> None:
    """Seed by seed, across batches of two."""
    pictures = draw(pipeline, PROMPTS[:3], batch=2)
    theirs = load_adapter(str(student), max_sequence_length=0).pipeline
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        PROMPTS[:3],
        num_inference_steps=4,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
        height=64,
        width=64,
    ).images
    # bfloat16 arithmetic, where the CPU has it, costs a few levels; another picture, 10 dB.
    assert psnr_db(pictures, np.stack([np.asarray(each) for each in expected])) > 35


def test_every_runtime_is_compared_with_diffusers(
    repository: Path, student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    words = [repository, "--student", student, "--prompts", 8, "--out", out]
    code = main([str(word) for word in words])
    result = json.loads(out.read_text())
    served = json.loads((repository / "tiny" / "1" / "export.json").read_text())["runtimes"]
    assert [each["runtime"] for each in result["exports"]] == served
    assert code == (0 if all(each["within"] for each in result["exports"]) else 1)
    (exact,) = [each for each in result["exports"] if each["runtime"] == "openvino-f32"]
    assert exact["psnr_db"] > 60 and exact["within"] and exact["accuracy"]["subjects"]["of"] == 8
    assert result["environment"]["packages"]["openvino"]


def test_what_cannot_be_compared(
    repository: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--student", str(student)]) == 2
    assert "holds no export" in capsys.readouterr().err
    assert main([str(repository)]) == 2  # of the tiny student, not of the emoji one
    assert "is not of models/emoji-student" in capsys.readouterr().err
