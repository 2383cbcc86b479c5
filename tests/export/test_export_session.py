from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from distill.adapters import Sd3Adapter
from export.session import OnnxPipeline
from export.tokenizers import pipeline_tokenizers


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("width, height", [(64, 64), (72, 56)])
def test_whole_pictures_equal_diffusers(
    exported: Path, adapter: Sd3Adapter, steps: int, width: int, height: int
) -> None:
    prompts = ["a fox in the snow", "two owls"]
    expected = adapter.pipeline(
        prompt=prompts,
        width=width,
        height=height,
        sigmas=[1 - i / steps for i in range(steps)],
        num_inference_steps=steps,
        guidance_scale=1.0,
        max_sequence_length=0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
    ).images
    noise = [
        torch.randn(
            1, 4, height // 4, width // 4, generator=torch.Generator().manual_seed(seed)
        ).numpy()
        for seed in (3, 4)
    ]
    ids = [np.array(t.ids(prompts)) for t in pipeline_tokenizers(adapter)]
    sigmas = adapter.sigmas(steps, height, width)
    pictures = OnnxPipeline(exported / "1").picture(ids, np.concatenate(noise), sigmas)
    difference = np.abs(pictures.astype(int) - np.stack(expected))
    assert difference.max() <= 1 and difference.mean() < 1e-3


def test_openvino_reads_the_same_graphs(exported: Path, adapter: Sd3Adapter) -> None:
    draw = np.random.default_rng(0)
    ids = np.array([t.ids(["a fox"] * 3) for t in pipeline_tokenizers(adapter)])
    latents = draw.standard_normal((3, 4, 18, 14), dtype=np.float32)
    onnx, core = OnnxPipeline(exported / "1"), openvino.Core()

    def check(component: str, **inputs: np.ndarray) -> list[np.ndarray]:
        model = core.compile_model(
            exported / "1" / f"{component}.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        outputs = onnx.run(component, **inputs)
        found = model(inputs)
        for i, expected in enumerate(outputs):
            atol = 1 if expected.dtype == np.uint8 else 1e-5
            np.testing.assert_allclose(found[i].astype(float), expected, atol=atol)
        return outputs

    prompt_embeds, pooled = check("text_encoder", input_ids_0=ids[0], input_ids_1=ids[1])
    sigma = np.array([1.0, 0.5, 0.1], dtype=np.float32)
    check("transformer", latents=latents, sigma=sigma, prompt_embeds=prompt_embeds, pooled=pooled)
    check("vae_decoder", latents=latents)
