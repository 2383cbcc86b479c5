"""Every further architecture alike: texts, graphs and whole pictures are diffusers' own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Once
from students import FAMILIES, SIZES, family, plan_of, verified

from cdm_serve.engine.manifest import COMPONENTS, TokenizerFile
from cdm_serve.engine.tokenizers import PromptTokenizer
from export.student import Student, load_student
from export.tokenizers import PROMPTS, write_tokenizers

WriteGraph = Callable[[Student, str, str], Path]
WHOLE = (*COMPONENTS, "vae_encoder")
OWN = ("text_encoder", "transformer")  # autoencoders of FLUX.1 are of SD3's class
SLOW = [pytest.param(name, WHOLE, marks=pytest.mark.slow) for name in FAMILIES]


def load(name: str, once: Once) -> Student:
    return load_student(once(f"student-{name}", lambda folder: family(name, folder)))


@pytest.mark.parametrize("name, components", [("flux", OWN), *SLOW])
def test_every_component_and_whole_pictures_equal_diffusers(
    name: str,
    components: tuple[str, ...],
    once: Once,
    tmp_path: Path,
    write_graph: WriteGraph,
) -> None:
    student = load(name, once)
    for component in components:
        (tmp_path / f"{component}.onnx").symlink_to(write_graph(student, component, "fp32"))
    write_tokenizers(student.architecture.tokenizers(), tmp_path)
    verification = verified(student, tmp_path, plan_of("fp32", components, SIZES[1:], max_batch=3))
    assert not verification.failures
    assert "openvino-f32" in verification.served
    pictures = verification.to_json()["pictures"]
    found = [p["psnr_db"] for p in pictures if p["runtime"] == "onnxruntime"]
    assert len(found) == (components == WHOLE) and min(found, default=100) > 80


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "longcat-edit"])
def test_texts_of_any_kind_are_encoded_as_diffusers_does(
    name: str, once: Once, tmp_path: Path
) -> None:
    """From the served tokenizers: too long, Chinese, emoji, quotation marks, special tokens."""
    student = load(name, once)
    sources = student.architecture.tokenizers()
    files = tuple(
        TokenizerFile(path, each.length, each.pad_id, each.quotation, each.template)
        for path, each in zip(write_tokenizers(sources, tmp_path), sources, strict=True)
    )
    tokens = PromptTokenizer(files)(list(PROMPTS))
    inputs = []
    for pair in zip(tokens.ids, tokens.masks, strict=True):
        inputs += map(torch.tensor, pair if student.architecture.masks else pair[:1])
    with torch.no_grad():
        found = student.architecture.text_encoder(torch.float32)(*inputs)
    assert len({row.numpy().tobytes() for row in found[0]}) == len(PROMPTS)
    # Through encode_prompt of the pipeline, one at a time as most requests are.
    for row, prompt in enumerate(PROMPTS):
        expected = student.adapter.encode([prompt]).tensors.values()
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[row : row + 1], theirs, rtol=0, atol=2e-5)
