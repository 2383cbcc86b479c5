"""The three graphs of a model and the arithmetic between them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.job import Pixels
from cdm_serve.engine.manifest import Manifest
from cdm_serve.engine.noise import randn_rows
from cdm_serve.engine.runtimes.runtime import Array, Graph, Runtime
from cdm_serve.engine.tokenize import PromptTokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Condition:
    """One prompt as the transformer takes it: by input, without the batch axis.

    ``prompt_embeds`` is (T, D), ``pooled`` (P,) where the architecture has it; ``tokens`` is the
    prompt's length in ids.
    """

    embeds: dict[str, Array]
    tokens: int

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for array in self.embeds.values())


class Pipeline:
    """Text encoder, transformer and decoder of one exported model.

    Each of ``encode``, ``velocity`` and ``decode`` is for one thread at a time; the three may run
    at once. Arrays are the runtime's. ``overlaps`` says whether they gain from it, ``batches`` is
    the policy that suits the runtime, and ``lanes`` are the same pipeline on parts of the machine,
    where it can be divided.
    """

    lanes: Sequence["Pipeline"] = ()

    def __init__(self, manifest: Manifest, runtime: Runtime) -> None:
        self.manifest = manifest
        self._runtime = runtime
        self._tokenize = PromptTokenizer(manifest.tokenizers)
        self._text_encoder = runtime.load(manifest.components["text_encoder"])
        self._transformer = runtime.load(manifest.components["transformer"])
        self._vae_decoder = runtime.load(manifest.components["vae_decoder"])
        self.overlaps = runtime.overlaps
        self.batches = runtime.batches
        names = ("_text_encoder", "_transformer", "_vae_decoder")
        graphs = zip(*(getattr(self, name).lanes for name in names), strict=False)
        self.lanes = [self._with(dict(zip(names, lane, strict=True))) for lane in graphs]

    def _with(self, graphs: dict[str, Graph]) -> "Pipeline":
        lane = copy.copy(self)
        lane.__dict__ |= graphs
        return lane

    def encode(self, prompts: list[str]) -> list[Condition]:
        """One condition a prompt: those of the encoder's outputs that the transformer takes."""
        tokens = self._tokenize(prompts)
        named: dict[str, NDArray[Any]] = {}
        for k, (ids, mask) in enumerate(zip(tokens.ids, tokens.masks, strict=True)):
            named |= {f"input_ids_{k}": ids, f"attention_mask_{k}": mask}
        dtypes = self._text_encoder.inputs
        outputs = self._text_encoder.run(
            {
                name: self._to_device(array, dtypes[name])
                for name, array in named.items()
                if name in dtypes  # not every architecture takes masks
            }
        )
        taken = {
            name: outputs[name].astype(dtype, copy=False)
            for name, dtype in self._transformer.inputs.items()
            if name in outputs
        }
        return [
            # Copies: rows would keep the whole batch in memory.
            Condition({name: array[row].copy() for name, array in taken.items()}, count)
            for row, count in enumerate(tokens.counts)
        ]

    def noise(self, seed: int, size: str) -> Array:
        """The (C, h, w) latents a seed starts from."""
        return self.noises([seed], size)[0]

    def noises(self, seeds: Sequence[int], size: str) -> Array:
        """The (B, C, h, w) latents that seeds start from."""
        noise = randn_rows(seeds, self.manifest.latent_shape(size))
        return self._to_device(noise, np.dtype(np.float32))

    def stack(self, rows: list[Array]) -> Array:
        """Rows as one batch."""
        return self._runtime.arrays.stack(rows)

    def velocity(self, latents: Array, sigma: Floats, conditions: list[Condition]) -> Array:
        """(B, C, h, w) in float32 at one sigma a row."""
        dtypes = self._transformer.inputs
        inputs = {
            name: self.stack([condition.embeds[name] for condition in conditions])
            for name in conditions[0].embeds
        }
        inputs["latents"] = latents.astype(dtypes["latents"], copy=False)
        inputs["sigma"] = self._to_device(sigma, dtypes["sigma"])
        return self._transformer.run(inputs)["velocity"].astype(np.float32, copy=False)

    def move(self, latents: Array, distance: Floats, velocity: Array) -> Array:
        """``latents + distance * velocity`` with one distance in sigma a row: an Euler step."""
        rows = self._to_device(distance, np.dtype(np.float32))
        return latents + rows[:, None, None, None] * velocity

    def decode(self, latents: Array) -> Pixels:
        """(B, C, h, w) latents to (B, H, W, 3) pixels in the memory of the CPU."""
        dtype = self._vae_decoder.inputs["latents"]
        images = self._vae_decoder.run({"latents": latents.astype(dtype, copy=False)})["image"]
        pixels: Pixels = self.to_host(images)
        return pixels

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
        return self._runtime.to_host(array)

    def _to_device(self, array: NDArray[Any], dtype: np.dtype[Any]) -> Array:
        return self._runtime.arrays.asarray(array.astype(dtype, copy=False))
