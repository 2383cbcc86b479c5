"""What an export is run on, and what torch and diffusers make of the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.utils import logging
from torch import Tensor

from export.runtimes import Array
from export.tokenizers import WrittenTokenizer

if TYPE_CHECKING:
    from distill.adapters import Adapter, Condition
    from export.sizes import Size
    from export.student import Student

PROMPTS = ("a fox in the snow", "", "two owls", 'a sign that says "open"')
SEED = 7


@dataclass(frozen=True)
class Case:
    """Inputs of a component and the outputs that torch gives in float32."""

    component: str
    size: str | None
    inputs: dict[str, Array]
    expected: dict[str, Array]

    @property
    def batch(self) -> int:
        """Rows of every input and output."""
        return len(next(iter(self.inputs.values())))


class Cases:
    """The cases of one student.

    Args:
        student: to be compared with.
        tokenizers: as they were written, one for each of the pipeline's.
        sizes: in pixels.
        max_batch: the largest batch; one and three samples are tried as well.
    """

    def __init__(
        self,
        student: Student,
        tokenizers: list[WrittenTokenizer],
        sizes: tuple[Size, ...],
        max_batch: int,
    ) -> None:
        self._student = student
        self._adapter: Adapter = student.adapter
        self._tokenizers = tokenizers
        self.sizes = sizes
        self.max_batch = max_batch
        self._batches = sorted({1, min(3, max_batch), max_batch})

    @torch.no_grad()
    def of(self, component: str) -> Iterator[Case]:
        """The cases of a component at every batch and size."""
        with quiet(self._adapter):
            for size in self.sizes if component != "text_encoder" else (None,):
                for batch in self._batches:
                    yield self._case(component, size, batch)

    @torch.no_grad()
    def picture(self, size: Size) -> Array:
        """The pipeline's own picture of ``PROMPTS[0]`` from ``SEED``, (1, H, W, 3) uint8."""
        generator = torch.Generator("cpu").manual_seed(SEED)
        with quiet(self._adapter):
            picture = self._adapter.picture(
                PROMPTS[0], self._student.steps, size.height, size.width, generator
            )
            return np.asarray(picture)[None]

    def text(self, prompts: list[str]) -> dict[str, Array]:
        """The text encoder's inputs."""
        inputs: dict[str, Array] = {}
        for i, tokenize in enumerate(self._tokenizers):
            tokens = tokenize(prompts)
            inputs |= {f"input_ids_{i}": tokens.ids, f"attention_mask_{i}": tokens.mask}
        return {name: inputs[name] for name in self._student.architecture.text_inputs()}

    def noise(self, size: Size, batch: int = 1) -> Tensor:
        """The noise that ``SEED`` stands for, (batch, C, h, w)."""
        shape = self._adapter.latent_shape(size.height, size.width)
        return torch.randn((batch, *shape), generator=torch.Generator("cpu").manual_seed(SEED))

    def sigmas(self, size: Size) -> list[float]:
        """The student's own grid."""
        return self._adapter.sigmas(self._student.steps, size.height, size.width)

    def _case(self, component: str, size: Size | None, batch: int) -> Case:
        adapter = self._adapter
        prompts = [f"{PROMPTS[i % len(PROMPTS)]}{'!' * (i // len(PROMPTS))}" for i in range(batch)]
        if size is None:
            condition = adapter.encode(prompts)
            inputs, outputs = self.text(prompts), graph_inputs(condition)
        elif component == "transformer":
            # Each sample at a noise level of its own, as in a batch of requests at various steps.
            condition, sigma = adapter.encode(prompts), torch.linspace(1.0, 0.1, batch)
            latents = self.noise(size, batch)
            velocity = adapter.velocity(adapter.transformer, latents, sigma, condition)
            inputs = {"latents": latents.numpy(), "sigma": sigma.numpy(), **graph_inputs(condition)}
            outputs = {"velocity": velocity.numpy()}
        else:
            latents = self.noise(size, batch)
            processor = adapter.pipeline.image_processor
            pictures = processor.postprocess(adapter.decode(latents), output_type="pil")
            inputs, outputs = {"latents": latents.numpy()}, {"image": np.stack(pictures)}
        return Case(component, None if size is None else str(size), inputs, outputs)


def graph_inputs(condition: Condition) -> dict[str, Array]:
    """A condition's tensors by the names they have in the graphs."""
    return {name: tensor.numpy() for name, tensor in condition.tensors.items()}


@contextmanager
def quiet(adapter: Adapter) -> Iterator[None]:
    """No progress bar per picture and no notes on truncated prompts."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    adapter.pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
