from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from pipelines import tiny_sd3

from distill.adapters import Sd3Adapter, load_adapter
from export.graphs import write_onnx
from export.text import Sd3TextEncoder, text_encoder_graph
from export.tokenizers import pipeline_tokenizers

PROMPTS = ["a fox in the snow", "", "two owls"]


def input_ids(adapter: Sd3Adapter) -> list[torch.Tensor]:
    return [torch.tensor(t.ids(PROMPTS)) for t in pipeline_tokenizers(adapter)]


@pytest.mark.parametrize("zero_tokens", [0, 5])
def test_without_t5_the_pipelines_zero_tokens_follow(
    student_folder: Path, zero_tokens: int
) -> None:
    adapter = load_adapter(str(student_folder), max_sequence_length=zero_tokens)
    expected = adapter.encode(PROMPTS)
    with torch.no_grad():
        prompt_embeds, pooled = Sd3TextEncoder(adapter)(*input_ids(adapter))
    assert prompt_embeds.shape == (3, 24 + zero_tokens, 72)
    assert torch.equal(prompt_embeds, expected.prompt_embeds)
    assert torch.equal(pooled, expected.pooled)


def test_t5_exports_and_attends_as_before_afterwards(tmp_path: Path) -> None:
    adapter = load_adapter(str(tiny_sd3(tmp_path / "t5", t5=True)), max_sequence_length=16)
    t5 = adapter.pipeline.text_encoder_3
    attention = t5.config._attn_implementation
    with text_encoder_graph(adapter) as graph:
        write_onnx(graph, tmp_path / "text_encoder.onnx")
    assert t5.config._attn_implementation == attention != "eager"
    session = onnxruntime.InferenceSession(
        tmp_path / "text_encoder.onnx", providers=["CPUExecutionProvider"]
    )
    ids = {f"input_ids_{i}": each.numpy() for i, each in enumerate(input_ids(adapter))}
    prompt_embeds, pooled = session.run(["prompt_embeds", "pooled"], ids)
    expected = adapter.encode(PROMPTS)
    np.testing.assert_allclose(prompt_embeds, expected.prompt_embeds, atol=1e-5)
    np.testing.assert_allclose(pooled, expected.pooled, atol=1e-5)
