import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.errors import ExportError
from export.request import Size
from export.student import Student, load_student

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
WEIGHT = "norm_out.linear.weight"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_student_is_loaded_in_float32_with_its_card(student: Student) -> None:
    assert (student.name, student.contract.steps, student.size) == ("tiny", 4, Size(64, 64))
    assert student.adapter.max_sequence_length == 16
    assert student.adapter.pipeline.dtype == torch.float32


def test_a_plain_folder_is_taken_with_diffusers_defaults(student_copy: Path) -> None:
    (student_copy / "cdm.json").unlink()
    student = load_student(student_copy)
    assert (student.name, student.contract.steps, student.size) == ("student", 4, Size(64, 64))
    assert student.contract.grid == "default"
    assert student.adapter.max_sequence_length == 256


def test_the_hash_is_of_what_is_exported(student: Student, student_copy: Path) -> None:
    (student_copy / "README.md").write_text("Not part of the model.")
    assert load_student(student_copy).sha256 == student.sha256
    weights = load_file(student_copy / WEIGHTS)
    weights[WEIGHT][0, 0] += 1
    save_file(weights, student_copy / WEIGHTS, metadata={"format": "pt"})
    assert load_student(student_copy).sha256 != student.sha256


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 2}, "not of format 1"),
        ({"name": ""}, "name must be a non-empty string"),
        ({"architecture": "longcat"}, "says architecture 'longcat'"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"steps": True}, "steps must be an integer"),
        ({"width": "64"}, "width must be an integer"),
        ({"max_sequence_length": -1}, "max_sequence_length must be an integer of at least 0"),
        ({"guidance_scale": 4.5}, "guidance_scale is 4.5; expected 0 or 1"),
        ({"sigmas": [1.0, 0.5, 0.9, 0.25]}, "sigmas for 4 steps must be 4 numbers that fall"),
        ({"sigmas": ["1"]}, "sigmas for 4 steps must be 4 numbers"),
        ({"sigmas": {"2": [1.0, 0.5]}}, "must be the list for 4 steps"),
    ],
)
def test_a_card_that_cannot_be_served(
    student_copy: Path, changes: dict[str, Any], message: str
) -> None:
    edit(student_copy / "cdm.json", **changes)
    with pytest.raises(ExportError, match=message):
        load_student(student_copy)


@pytest.mark.parametrize("name", ["cdm.json", "model_index.json"])
@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_json(student_copy: Path, name: str, text: str) -> None:
    (student_copy / name).write_text(text)
    with pytest.raises(ExportError, match=name):
        load_student(student_copy)


def test_an_unknown_architecture(student_copy: Path) -> None:
    edit(student_copy / "model_index.json", _class_name="PixArtAlphaPipeline")
    with pytest.raises(
        ExportError, match=r"PixArtAlphaPipeline.*known pipelines: StableDiffusion3Pipeline"
    ):
        load_student(student_copy)


def test_a_scheduler_that_is_not_flow_matching(student_copy: Path) -> None:
    edit(student_copy / "scheduler" / "scheduler_config.json", use_karras_sigmas=True)
    with pytest.raises(ExportError, match=r"expected FlowMatchEulerDiscreteScheduler"):
        load_student(student_copy)


def test_a_component_whose_folder_is_missing(student_copy: Path) -> None:
    (student_copy / "tokenizer_2").rename(student_copy / "elsewhere")
    with pytest.raises(ExportError, match="lists tokenizer_2"):
        load_student(student_copy)


def test_pickled_weights(student_copy: Path) -> None:
    weights = student_copy / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    load_student(student_copy)  # the safetensors are taken
    weights.unlink()
    with pytest.raises(ExportError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        load_student(student_copy)


def test_truncated_weights(student_copy: Path) -> None:
    path = student_copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="its end is missing"):
        load_student(student_copy)


@pytest.mark.parametrize(
    "value, message", [(float("nan"), "not finite"), (None, "is missing from its files")]
)
def test_broken_weights(student_copy: Path, value: float | None, message: str) -> None:
    weights = load_file(student_copy / WEIGHTS)
    if value is None:
        del weights[WEIGHT]
    else:
        weights[WEIGHT][0, 0] = value
    save_file(weights, student_copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=f"{WEIGHT} .*{message}"):
        load_student(student_copy)
