"""What is LongCat's own: template and quotation, packing, rotary positions without float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from cdm_serve.engine.quotation import pieces
from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from distill.adapters.packing import RotaryTables
from export.student import Student
from export.tokenizers import PROMPTS, write_tokenizers

WriteGraph = Callable[[Student, str, str], Path]


# (packed rows, packed columns): odd, least, long.
@pytest.mark.parametrize("rows, columns", [(9, 7), (1, 1), (3, 40)])
def test_velocity_equals_diffusers(
    longcat: Student, write_graph: WriteGraph, rows: int, columns: int
) -> None:
    """The pipeline's own packing and ids, and what it hands to its transformer."""
    pipeline = longcat.adapter.pipeline
    latents = torch.randn(2, 16, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 0.3])
    prompt_embeds, text_ids = pipeline.encode_prompt(["a fox", "an 'owl'"])
    packed = pipeline._pack_latents(latents, 2, 16, 2 * rows, 2 * columns)
    _, image_ids = pipeline.prepare_latents(
        2, 16, 8 * rows, 8 * columns, torch.float32, "cpu", torch.Generator(), None
    )
    with torch.no_grad():
        velocity = pipeline.transformer(
            hidden_states=packed,
            timestep=sigma,
            encoder_hidden_states=prompt_embeds,
            txt_ids=text_ids,
            img_ids=image_ids,
        ).sample
    expected = pipeline._unpack_latents(velocity, 8 * rows, 8 * columns, 4)
    graph = OnnxRuntime("cpu").load(write_graph(longcat, "transformer", "fp32"))
    inputs = {"latents": latents, "sigma": sigma, "prompt_embeds": prompt_embeds}
    found = graph.run({name: tensor.detach().numpy() for name, tensor in inputs.items()})
    np.testing.assert_allclose(found["velocity"], expected, atol=1e-5)


def test_rotary_tables_are_diffusers_own(longcat: Student) -> None:
    pos_embed = longcat.adapter.pipeline.transformer.pos_embed
    ids = torch.tensor([[0, 0, 0], [0, 511, 511], [1, 512, 2047], [1, 1023, 700]])
    for found, expected in zip(RotaryTables(pos_embed, 2048)(ids), pos_embed(ids), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_no_float64(longcat: Student, write_graph: WriteGraph, precision: str) -> None:
    graph = onnx.load(write_graph(longcat, "transformer", precision)).graph
    tables = {t.name: t.data_type for t in graph.initializer if "sine_" in t.name}
    assert tables and set(tables.values()) == {onnx.TensorProto.FLOAT}
    types = {tensor.data_type for tensor in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in graph.value_info}
    assert onnx.TensorProto.DOUBLE not in types


QUOTED = [
    *PROMPTS,
    "Please write 'Hello' on the blackboard for me.",
    "don't",
    "it's 'it's' here",
    "the dogs' bowl and the cats' bed",
    '“双引号”和\u2018单引号\u2019以及"straight"',
    "unclosed 'quote and \"another",
    "''\"\"\u2018\u2019“”",
    "a 'b \"c\" d' e",
    "<|im_end|> 'x' <|endoftext|>",
    "x" * 600 + "'quoted behind the end'",
]


@pytest.mark.parametrize("prompt", QUOTED)
def test_tokens_are_the_pipelines(longcat: Student, tmp_path: Path, prompt: str) -> None:
    """By the written file and the rule that export.json names, against the pipeline's own."""
    (source,) = longcat.architecture.tokenizers()
    (path,) = write_tokenizers([source], tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    ids = [i for p in pieces(prompt) for i in tokenizer.encode(p, add_special_tokens=False).ids]
    expected, mask = source.encode([prompt])
    count = int(mask.sum())
    assert ids[:512] == expected[0, :count].tolist()
    assert (expected[0, count:] == source.pad_id).all()


def test_different_inner_apostrophes_stay() -> None:
    """diffusers garbles such prompts; which word it keeps changes from process to process."""
    prompt = "it's what he doesn't say: 'I'm here'"
    assert "".join(pieces(prompt)) == prompt
    assert pieces(prompt) == ["it's what he doesn't say: ", *"'I'm here'"]
