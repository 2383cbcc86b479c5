"""What is SD3's own: text encoders in one graph, position embeddings by index."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import tiny_sd3

from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from distill.adapters import load_adapter
from distill.adapters.sd3 import Sd3Adapter
from export.architectures.sd3 import Sd3, Sd3TextEncoder

PROMPTS = ["a fox in the snow", "", "two owls"]
# Patch counts: even, odd, odd by even, the least, the most the position embeddings hold.
LATENTS = [(16, 16), (18, 14), (18, 16), (2, 2), (48, 48)]


def input_ids(adapter: Sd3Adapter) -> list[torch.Tensor]:
    return [torch.from_numpy(t.encode(PROMPTS)[0]) for t in Sd3(adapter).tokenizers()]


@pytest.mark.parametrize("zero_tokens", [0, 5])
def test_without_t5_the_pipelines_zero_tokens_follow(tmp_path: Path, zero_tokens: int) -> None:
    adapter = load_adapter(str(tiny_sd3(tmp_path / "sd3")), max_sequence_length=zero_tokens)
    assert isinstance(adapter, Sd3Adapter)
    expected = adapter.encode(PROMPTS)
    with torch.no_grad():
        prompt_embeds, pooled = Sd3TextEncoder(adapter)(*input_ids(adapter))
    assert prompt_embeds.shape == (3, 24 + zero_tokens, 72)
    assert torch.equal(prompt_embeds, expected.tensors["prompt_embeds"])
    assert torch.equal(pooled, expected.tensors["pooled"])


def test_t5_follows_the_clips(exported: Path, adapter: Sd3Adapter) -> None:
    graph = OnnxRuntime("cpu").load(exported / "1" / "text_encoder.onnx")
    ids = {f"input_ids_{i}": each.numpy() for i, each in enumerate(input_ids(adapter))}
    found = graph.run(ids)
    expected = adapter.encode(PROMPTS)
    assert found["prompt_embeds"].shape == (3, 24 + 16, 72)
    np.testing.assert_allclose(found["prompt_embeds"], expected.tensors["prompt_embeds"], atol=1e-5)
    np.testing.assert_allclose(found["pooled"], expected.tensors["pooled"], atol=1e-5)
    attention = adapter.pipeline.text_encoder_3.config._attn_implementation
    assert attention == "sdpa"  # the pipeline's own T5 goes on as it was


@pytest.mark.parametrize("height, width", LATENTS)
def test_velocity_equals_diffusers(
    exported: Path, adapter: Sd3Adapter, height: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, height, width, generator=generator)
    sigma = torch.tensor([1.0, 0.3])
    condition = adapter.encode(["a fox in the snow", ""])
    with torch.no_grad():
        expected = adapter.pipeline.transformer(
            hidden_states=latents,
            timestep=sigma * 1000,
            encoder_hidden_states=condition.tensors["prompt_embeds"],
            pooled_projections=condition.tensors["pooled"],
        ).sample
    graph = OnnxRuntime("cpu").load(exported / "1" / "transformer.onnx")
    inputs = {"latents": latents, "sigma": sigma, **condition.tensors}
    found = graph.run({name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_allclose(found["velocity"], expected, atol=1e-5)


@pytest.mark.parametrize("height, width", LATENTS)
def test_the_crop_by_index_is_diffusers_own(adapter: Sd3Adapter, height: int, width: int) -> None:
    expected = adapter.pipeline.transformer.pos_embed.cropped_pos_embed(height, width)
    transformer = Sd3(adapter).transformer(torch.float32)
    pos_embed = transformer.get_submodule("pos_embed")
    assert torch.equal(pos_embed.cropped_pos_embed(height, width), expected)  # type: ignore[operator]
    assert "cropped_pos_embed" in vars(pos_embed)  # and not the class's own
