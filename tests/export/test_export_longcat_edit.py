"""What is LongCat-Image-Edit's own: the picture inside the text encoder's graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from students import family

from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from export.cli import main
from export.student import Student, load_student

WriteGraph = Callable[[Student, str, str], Path]
PROMPTS = ["make the sign say 'open'", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family("longcat-edit", tmp_path_factory.mktemp("student") / "folder")


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return load_student(folder)


def encoded(student: Student, height: int, width: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the text encoder is given, and what diffusers makes of it."""
    image = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), np.uint8)
    pictures = student.adapter.pipeline.image_processor.preprocess([*map(Image.fromarray, image)])
    expected = student.adapter.condition(PROMPTS, pictures).tensors["prompt_embeds"]
    (tokenizer,) = student.architecture.tokenizers()
    ids, mask = tokenizer.encode(PROMPTS)
    seen = []
    for each in map(Image.fromarray, image):
        for *size, name in student.adapter.views(height, width):
            each = each.resize(tuple(size), Image.Resampling[name])
        seen.append(np.asarray(each))
    return [torch.tensor(each) for each in (ids, mask, np.stack(seen))], expected


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    return found.shape == expected.shape and error.item() < 1e-5


# One token; several; more than one window of the vision tower, along either side.
@pytest.mark.parametrize("height, width", [(64, 64), (120, 176), (128, 288), (296, 112)])
def test_the_text_encoder_sees_pictures_as_diffusers(
    student: Student, height: int, width: int
) -> None:
    inputs, expected = encoded(student, height, width)
    with torch.no_grad():
        (found,) = student.architecture.text_encoder(torch.float32)(*inputs)
    assert close(found, expected)
    shape = student.adapter.condition_shapes(height, width)["prompt_embeds"]
    assert found.shape[1:] == shape


@pytest.mark.slow
def test_its_graph_does_so_at_any_size(student: Student, write_graph: WriteGraph) -> None:
    graph = OnnxRuntime("cpu").load(write_graph(student, "text_encoder", "fp32"))
    for height, width in ((64, 64), (128, 288), (296, 112)):
        inputs, expected = encoded(student, height, width)
        named = zip(graph.inputs, (each.numpy() for each in inputs), strict=True)
        assert close(torch.from_numpy(graph.run(dict(named))["prompt_embeds"]), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "16x64"], "size 16x64: the text encoder sees pictures at half their size"),
        (["--sizes", "60x64"], "multiples of 8"),
    ],
)
def test_what_cannot_be_exported_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main([str(folder), "--to", "onnx", "--out", str(tmp_path), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
