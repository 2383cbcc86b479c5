"""The student's folder: loadable, float16, described."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from distill.adapters import Adapter, load_adapter
from distill.errors import DistillError
from distill.networks import Average, merged
from distill.recipe import LoraRecipe, Recipe
from distill.student import save_student
from distill.trainer import Trainer


@pytest.fixture
def trainer(make: Callable[..., Trainer], recipe: Recipe) -> Trainer:
    """After seven updates, as it were, with an average unlike the student and the teacher."""
    trainer: Trainer = make(recipe)
    trainer.updates = 7
    for value in trainer.average.values.values():
        value.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return trainer


def test_the_folder_loads_and_differs_only_in_the_transformer(
    adapter: Adapter, trainer: Trainer
) -> None:
    output = save_student(trainer)
    student = StableDiffusion3Pipeline.from_pretrained(
        output, dtype=torch.float16, text_encoder_3=None, tokenizer_3=None
    )
    for name, weight in student.transformer.state_dict().items():
        assert weight.dtype == torch.float16
        if name in trainer.average.values:  # the position table is no parameter
            assert torch.equal(weight, trainer.average.values[name].half()), name
    for part in ("vae", "text_encoder", "text_encoder_2"):
        theirs = getattr(adapter.pipeline, part).state_dict()
        for name, weight in getattr(student, part).state_dict().items():
            assert torch.equal(weight, theirs[name].half()), f"{part} {name}"
    ids = [p.tokenizer("a fox").input_ids for p in (student, adapter.pipeline)]
    assert ids[0] == ids[1]
    # Which diffusers takes by itself: with a shift and an end for this number of steps.
    student.scheduler.set_timesteps(trainer.recipe.steps)
    expected = adapter.sigmas(trainer.recipe.steps, 64, 64)
    assert student.scheduler.sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    assert load_adapter(str(output)).pipeline.scheduler.config.shift == 3.0


def test_a_weight_that_has_no_place_is_never_left_out(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the unchanged teacher would be the student."""

    def renamed(network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in merged(network):
            yield name.replace("proj_out", "projection"), weight

    monkeypatch.setattr("distill.student.merged", renamed)
    with pytest.raises(DistillError, match=r'cannot be written: .*\n.*"proj_out\.weight"'):
        save_student(trainer)
    assert not Path(trainer.recipe.output).exists()


def test_adapters_are_merged_into_a_plain_folder(
    make: Callable[..., Trainer], recipe: Recipe
) -> None:
    """The velocity of the saved transformer is the averaged network's, to float16's rounding."""
    trainer: Trainer = make(replace(recipe, lora=LoraRecipe(rank=2)))
    for value in trainer.average.values.values():
        value.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    student = load_adapter(str(save_student(trainer)), max_sequence_length=0)
    noise = torch.randn(2, *trainer.latent_shape, generator=torch.Generator().manual_seed(0))
    condition, sigma = trainer.prompts.at(range(2)), torch.tensor([0.3, 0.9])
    with torch.no_grad(), trainer.averaged():
        expected = trainer.velocities.student(noise, sigma, condition)
        teacher = trainer.velocities.teacher(noise, sigma, condition)
        merged = student.velocity(student.transformer, noise, sigma, condition)
    assert not any("lora" in name for name in student.transformer.state_dict())
    error, moved = (merged - expected).norm(), (expected - teacher).norm()
    assert error < 0.01 * moved


def test_cdm_json(recipe: Recipe, trainer: Trainer) -> None:
    output = save_student(trainer)
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
        "shift": 3.0,
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


def test_a_weight_of_another_name_is_no_student(trainer: Trainer) -> None:
    """Left aside, it would be the teacher's that is saved under the student's name."""
    blocks = trainer.student.transformer_blocks
    blocks[0].attn.to_query = blocks[0].attn.to_q
    del blocks[0].attn.to_q
    trainer.average = Average(trainer.student)
    with pytest.raises(DistillError, match=r"(?s)student cannot be written: .*to_query"):
        save_student(trainer)
    assert not Path(trainer.recipe.output).exists()


def test_an_older_student_is_replaced_whole(recipe: Recipe, trainer: Trainer) -> None:
    output = Path(recipe.output)
    output.mkdir()
    (output / "left over").write_text("")
    save_student(trainer)
    assert not (output / "left over").exists()
    assert [p for p in output.parent.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_the_older_student(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = save_student(trainer)
    real = Path.write_text

    def onto_a_full_disk(path: Path, *args: str, **options: str) -> int:
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/full")
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", onto_a_full_disk)
    with pytest.raises(DistillError, match=r"student cannot be written: .*No space left"):
        save_student(trainer)
    assert json.loads((output / "cdm.json").read_text())["updates"] == 7
    assert [p for p in output.parent.iterdir() if p.name.startswith(".")] == []
