"""Run the written ONNX files through ONNX Runtime, and sample with them as serving does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]
COMPONENTS = ("text_encoder", "transformer", "vae_decoder")


class OnnxPipeline:
    """The three graphs of one export on the CPU."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in COMPONENTS
        }

    def run(self, component: str, **inputs: Array) -> list[Array]:
        """A component's outputs, in the graph's order."""
        outputs: list[Array] = self._sessions[component].run(None, inputs)
        return outputs

    def picture(self, input_ids: list[Array], noise: Array, sigmas: list[float]) -> Array:
        """Euler steps from noise (B, C, h, w) along the shifted grid -> uint8 (B, H, W, 3)."""
        ids = {f"input_ids_{i}": each for i, each in enumerate(input_ids)}
        prompt_embeds, pooled = self.run("text_encoder", **ids)
        latents, grid = noise, np.asarray(sigmas, dtype=np.float32)
        for sigma, following in pairwise(grid):
            velocity = self.run(
                "transformer",
                latents=latents,
                sigma=np.full(len(latents), sigma),
                prompt_embeds=prompt_embeds,
                pooled=pooled,
            )[0]
            latents = latents + (following - sigma) * velocity
        return self.run("vae_decoder", latents=latents)[0]
