"""The three graphs of a model and the arithmetic between them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.manifest import Manifest
from cdm_serve.engine.noise import randn
from cdm_serve.engine.runtime import Session
from cdm_serve.engine.tokenize import PromptTokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Condition:
    """One prompt as the transformer sees it: (T, D) and (P,); ``tokens`` is its length in ids."""

    prompt_embeds: Floats
    pooled: Floats
    tokens: int


class Pipeline:
    """Text encoder, transformer and decoder of one exported model."""

    def __init__(self, manifest: Manifest, precision: str) -> None:
        self.manifest = manifest
        self._tokenize = PromptTokenizer(manifest.tokenizers)
        self._text_encoder = Session(manifest.components["text_encoder"], precision)
        self._transformer = Session(manifest.components["transformer"], precision)
        self._vae_decoder = Session(manifest.components["vae_decoder"], precision)

    def encode(self, prompts: list[str]) -> list[Condition]:
        """One condition a prompt."""
        tokens = self._tokenize(prompts)
        inputs = {f"input_ids_{k}": ids for k, ids in enumerate(tokens.ids)}
        outputs = self._text_encoder.run(inputs)
        rows = zip(outputs["prompt_embeds"], outputs["pooled"], tokens.counts, strict=True)
        return [Condition(*row) for row in rows]

    def noise(self, seed: int, size: str) -> Floats:
        """The (C, h, w) latents a seed starts from."""
        latents: Floats = randn(seed, (1, *self.manifest.latent_shape(size)))[0]
        return latents

    def velocity(self, latents: Floats, sigma: Floats, conditions: list[Condition]) -> Floats:
        """(B, C, h, w) at one sigma a row."""
        inputs: dict[str, NDArray[Any]] = {
            "latents": latents,
            "sigma": sigma,
            "prompt_embeds": np.stack([condition.prompt_embeds for condition in conditions]),
            "pooled": np.stack([condition.pooled for condition in conditions]),
        }
        velocity: Floats = self._transformer.run(inputs)["velocity"]
        return velocity

    def decode(self, latents: Floats) -> NDArray[np.uint8]:
        """(B, C, h, w) latents to (B, H, W, 3) pixels."""
        images: NDArray[np.uint8] = self._vae_decoder.run({"latents": latents})["image"]
        return images

    def warm_up(self, max_batch: int) -> None:
        """Run every graph once for every batch and size it will be asked for."""
        for batch in range(1, max_batch + 1):
            conditions = self.encode(["warm up"] * batch)
            for size in self.manifest.sizes:
                latents = np.stack([self.noise(0, size)] * batch)
                self.velocity(latents, np.ones(batch, np.float32), conditions)
                self.decode(latents)
