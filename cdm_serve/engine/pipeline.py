"""The graphs of a model and the arithmetic between them."""

import copy
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdm_serve.engine.job import Pixels
from cdm_serve.engine.manifest import DECODERS, Manifest
from cdm_serve.engine.noise import randn_rows
from cdm_serve.engine.runtimes.runtime import Array, Graph, Runtime
from cdm_serve.engine.tokenizers import PromptTokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Condition:
    """One prompt as the transformer takes it: by input, without the batch axis.

    ``tokens`` is the prompt's length in ids.
    """

    embeds: dict[str, Array]
    tokens: int

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for array in self.embeds.values())


class Pipeline:
    """Text encoder, transformer and decoders of one exported model, or those the manifest has.

    Each of ``encode``, ``encode_picture``, ``velocity`` and ``decode`` is for one thread at a time;
    they may run at once. Arrays are the runtime's. ``overlaps`` says whether they gain from it,
    ``batches`` is the policy that suits the runtime, and ``lanes`` are the same pipeline on parts
    of the machine, where it can be divided. Graphs that ``loaded`` has by their identity are not
    loaded again.
    """

    lanes: Sequence["Pipeline"] = ()

    def __init__(
        self,
        manifest: Manifest,
        runtime: Runtime,
        loaded: MutableMapping[str, Graph] | None = None,
    ) -> None:
        self.manifest = manifest
        self._runtime = runtime
        self._tokenize = PromptTokenizer(manifest.tokenizers)
        loaded = {} if loaded is None else loaded
        for name, path in manifest.components.items():
            if manifest.identities[name] not in loaded:
                loaded[manifest.identities[name]] = runtime.load(path)
        self._graphs = {name: loaded[manifest.identities[name]] for name in manifest.components}
        self.overlaps = runtime.overlaps
        self.batches = runtime.batches
        lanes = zip(*(graph.lanes for graph in self._graphs.values()), strict=False)
        self.lanes = [self._with(dict(zip(self._graphs, lane, strict=True))) for lane in lanes]

    def _with(self, graphs: dict[str, Graph]) -> "Pipeline":
        lane = copy.copy(self)
        lane._graphs = graphs
        return lane

    def encode(self, prompts: list[str], pictures: Pixels | None = None) -> list[Condition]:
        """One condition a prompt; with (B, H, W, 3) pixels where it takes them."""
        tokens = self._tokenize(prompts)
        named: dict[str, NDArray[Any]] = {}
        for k, (ids, mask) in enumerate(zip(tokens.ids, tokens.masks, strict=True)):
            named |= {f"input_ids_{k}": ids, f"attention_mask_{k}": mask}
        if pictures is not None:
            named["image"] = np.stack([self._view(each) for each in pictures])
        outputs = self._run("text_encoder", named)
        return [
            # Copies: rows would keep the whole batch in memory.
            Condition({name: outputs[name][row].copy() for name in self.manifest.conditions}, count)
            for row, count in enumerate(tokens.counts)
        ]

    def _view(self, pixels: Pixels) -> Pixels:
        """What the text encoder sees of a picture."""
        image = Image.fromarray(pixels)
        for width, height, name in self.manifest.views[f"{image.width}x{image.height}"]:
            image = image.resize((width, height), Image.Resampling[name])
        return np.asarray(image)

    def encode_picture(self, pixels: Pixels) -> Array:
        """(H, W, 3) pixels to (C, h, w) latents without noise."""
        return self._run("vae_encoder", {"image": pixels[None]})["latents"][0]

    def noise(self, seed: int, size: str) -> Array:
        """The (C, h, w) latents a seed starts from."""
        return self.noises([seed], size)[0]

    def noises(self, seeds: Sequence[int], size: str) -> Array:
        """The (B, C, h, w) latents that seeds start from."""
        return self.to_device(randn_rows(seeds, self.manifest.latent_shape(size)))

    def stack(self, rows: list[Array]) -> Array:
        """Rows as one batch."""
        return self._runtime.arrays.stack(rows)

    def velocity(self, latents: Array, sigma: Floats, conditions: list[Condition]) -> Array:
        """(B, C, h, w) in float32 at one sigma a row."""
        inputs = {
            name: self.stack([condition.embeds[name] for condition in conditions])
            for name in conditions[0].embeds
        }
        outputs = self._run("transformer", inputs | {"latents": latents, "sigma": sigma})
        return outputs["velocity"].astype(np.float32, copy=False)

    def move(self, latents: Array, distance: Floats, velocity: Array) -> Array:
        """``latents + distance * velocity`` with one distance in sigma a row: an Euler step."""
        return latents + self.to_device(distance)[:, None, None, None] * velocity

    def noised(self, latents: Array, noise: Array, sigma: Floats) -> Array:
        """(B, C, h, w) latents without noise with so much of it, one sigma a row."""
        rows = [self.to_device(part)[:, None, None, None] for part in (1 - sigma, sigma)]
        return rows[0] * latents + rows[1] * noise

    def free(self, mask: NDArray[np.bool_]) -> Floats:
        """(H, W) pixels to be painted as (1, 1, h, w) latents: 1 where any pixel of them is."""
        down = self.manifest.downscale
        height, width = (side // down for side in mask.shape)
        blocks = mask.reshape(1, 1, height, down, width, down).any(axis=(3, 5))
        return np.asarray(blocks, np.float32)

    def denoise(self, latents: Array, sigmas: Floats, conditions: list[Condition]) -> Array:
        """Euler steps of a whole batch from the first of ``sigmas`` to the last."""
        rows = len(conditions)
        for sigma, following in pairwise(sigmas):
            velocity = self.velocity(latents, np.full(rows, sigma), conditions)
            latents = self.move(latents, np.full(rows, following - sigma), velocity)
        return latents

    def decode(self, latents: Array, decoder: str = "full") -> Pixels:
        """(B, C, h, w) latents to (B, H, W, 3) pixels in the memory of the CPU."""
        pixels: Pixels = self.to_host(self._run(DECODERS[decoder], {"latents": latents})["image"])
        return pixels

    def finite(self, latents: Array) -> list[bool]:
        """Of each row, whether all of it are numbers: pixels no longer tell NaN from black."""
        host = self.to_host(latents)
        return [bool(np.isfinite(row).all()) for row in host]

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
        return self._runtime.to_host(array)

    def to_device(self, array: NDArray[Any]) -> Array:
        """The array in the memory that the graphs compute in."""
        return self._runtime.arrays.asarray(array)

    def _run(self, component: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """Of ``inputs`` what the graph takes (not every text encoder takes masks), in its types."""
        graph = self._graphs[component]
        types = graph.inputs
        return graph.run(
            {
                name: self.to_device(array).astype(types[name], copy=False)
                for name, array in inputs.items()
                if name in types
            }
        )
