"""The student's folder: loadable, float16, described."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from pipelines import tiny_sd3

from distill.adapters import Sd3Adapter
from distill.errors import DistillError
from distill.recipe import Recipe
from distill.student import save_student


@pytest.fixture
def network(adapter: Sd3Adapter, tmp_path: Path) -> torch.nn.Module:
    """A transformer other than the teacher's."""
    other = StableDiffusion3Pipeline.from_pretrained(
        tiny_sd3(tmp_path / "other", seed=1), text_encoder_3=None, tokenizer_3=None
    )
    return other.transformer


def test_the_folder_loads_and_differs_only_in_the_transformer(
    adapter: Sd3Adapter, recipe: Recipe, network: torch.nn.Module
) -> None:
    output = save_student(network, recipe, updates=7)
    student = StableDiffusion3Pipeline.from_pretrained(
        output, dtype=torch.float16, text_encoder_3=None, tokenizer_3=None
    )
    for name, weight in student.transformer.state_dict().items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, network.state_dict()[name].half()), name
    for part in ("vae", "text_encoder", "text_encoder_2"):
        theirs = getattr(adapter.pipeline, part).state_dict()
        for name, weight in getattr(student, part).state_dict().items():
            assert torch.equal(weight, theirs[name].half()), f"{part} {name}"
    ids = [p.tokenizer("a fox").input_ids for p in (student, adapter.pipeline)]
    assert ids[0] == ids[1]
    assert student.scheduler.config.shift == 3.0


def test_cdm_json(recipe: Recipe, network: torch.nn.Module) -> None:
    output = save_student(network, recipe, updates=7)
    described = json.loads((output / "cdm.json").read_text())
    weights = Path(recipe.teacher) / "transformer" / "diffusion_pytorch_model.safetensors"
    assert described.pop("versions").keys() == {"cdm-serve", "torch", "diffusers", "transformers"}
    assert described.pop("recipe") == json.loads(json.dumps(asdict(recipe)))
    assert described == {
        "format": 1,
        "name": "student",
        "architecture": "sd3",
        "steps": 4,
        "sigmas": [1.0, 0.75, 0.5, 0.25],
        "guidance_scale": 1.0,
        "max_sequence_length": 0,
        "height": 64,
        "width": 64,
        "teacher": {
            "source": recipe.teacher,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
        "updates": 7,
    }


def test_an_older_student_is_replaced_whole(recipe: Recipe, network: torch.nn.Module) -> None:
    output = Path(recipe.output)
    output.mkdir()
    (output / "left over").write_text("")
    save_student(network, recipe, updates=1)
    assert not (output / "left over").exists()
    assert [p for p in output.parent.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_the_older_student(
    recipe: Recipe, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = save_student(network, recipe, updates=1)
    real = Path.write_text

    def onto_a_full_disk(path: Path, *args: str, **options: str) -> int:
        path.symlink_to("/dev/full")
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", onto_a_full_disk)
    with pytest.raises(DistillError, match=r"student cannot be written: .*No space left"):
        save_student(network, recipe, updates=2)
    assert json.loads((output / "cdm.json").read_text())["updates"] == 1
    assert [p for p in output.parent.iterdir() if p.name.startswith(".")] == []
