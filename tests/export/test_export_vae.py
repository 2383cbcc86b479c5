from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from distill.adapters.sd3 import Sd3Adapter
from export.graphs import Decoder


class Passthrough(Sd3Adapter):
    """Takes latents for pictures, so that a test chooses the values to be rounded."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def test_rounding_is_diffusers_own(adapter: Sd3Adapter) -> None:
    edges = (torch.arange(-4, 516) / 2) / 255 * 2 - 1  # every level and every tie, and beyond
    pictures = edges[None, None, None].expand(1, 3, 1, -1)
    expected = VaeImageProcessor().postprocess(pictures, output_type="pil")[0]
    image = Decoder(Passthrough(adapter.pipeline))(pictures)
    assert image.dtype == torch.uint8
    assert np.array_equal(image[0], np.asarray(expected))


@pytest.mark.parametrize("height, width", [(16, 16), (18, 14)])
def test_image_equals_diffusers(
    exported: Path, adapter: Sd3Adapter, height: int, width: int
) -> None:
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    pipeline = adapter.pipeline
    config = pipeline.vae.config
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    expected = np.stack(pipeline.image_processor.postprocess(decoded, output_type="pil"))
    graph = OnnxRuntime("cpu").load(exported / "1" / "vae_decoder.onnx")
    image = graph.run({"latents": latents.numpy()})["image"]
    assert image.shape == (2, 4 * height, 4 * width, 3) and image.dtype == np.uint8
    difference = np.abs(image.astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 1e-3
