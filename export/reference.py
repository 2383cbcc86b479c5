"""What torch makes of all that an export is compared on: each component, then whole pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from export.plan import Plan
from export.precision import float32
from export.request import Size
from export.student import Student

Array = NDArray[Any]

PROMPTS = ("a fox in the snow", "", "two owls", 'a sign that says "open"')
SEED = 7


@dataclass(frozen=True)
class Case:
    """Rows for a component, ``prompts`` or arrays by name, and what torch makes of them."""

    size: str | None
    rows: dict[str, Any]
    expected: dict[str, Array]

    @property
    def batch(self) -> int:
        """How many rows."""
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True)
class Reference:
    """What torch makes of all that an export is compared on: cases by component, and pictures."""

    cases: dict[str, list[Case]]
    pictures: dict[Size, Array]


def reference(student: Student, plan: Plan) -> Reference:
    """All of it, so that the student can go before the first graph is loaded.

    Whole pictures are drawn only with all components.
    """
    if plan.level == "none":
        return Reference({}, {})
    draw = _picture if plan.level == "full" else _staged
    return Reference(
        {component: list(cases(student, plan, component)) for component in plan.components},
        {size: draw(student, size) for size in (plan.compared_sizes if plan.whole else ())},
    )


def cases(student: Student, plan: Plan, component: str) -> Iterator[Case]:
    """What a component is run on: each of the plan's batches, at every size it compares."""
    for size in plan.compared_sizes if component != "text_encoder" else (None,):
        # Pictures that come in are encoded one by one.
        for batch in plan.compared_batches if component != "vae_encoder" else (1,):
            yield _case(student, component, size, batch)


@torch.no_grad()
def _case(student: Student, component: str, size: Size | None, batch: int) -> Case:
    adapter = student.adapter
    prompts = [f"{PROMPTS[i % len(PROMPTS)]}{'!' * (i // len(PROMPTS))}" for i in range(batch)]
    if size is None:
        expected = _encode(student, prompts).tensors
        return Case(None, {"prompts": prompts}, {n: t.numpy() for n, t in expected.items()})
    shape = (batch, *adapter.latent_shape(size.height, size.width))
    latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SEED))
    if component == "vae_encoder":
        shape = (batch, size.height, size.width, 3)
        image = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
        pictures = adapter.pipeline.image_processor.preprocess([*map(Image.fromarray, image)])
        with _float32(student, "vae"):
            encoded = adapter.encode_pictures(pictures)
        return Case(str(size), {"image": image}, {"latents": encoded.numpy()})
    if component == "vae_decoder":
        processor = adapter.pipeline.image_processor
        with _float32(student, "vae"):
            pictures = processor.postprocess(adapter.decode(latents), output_type="pil")
        return Case(str(size), {"latents": latents.numpy()}, {"image": np.stack(pictures)})
    # Each sample at a noise level of its own, as in a batch of requests at various steps.
    condition, sigma = _encode(student, prompts), torch.linspace(1.0, 0.1, batch)
    with _float32(student, "transformer"):
        velocity = adapter.velocity(adapter.transformer, latents, sigma, condition)
    inputs = {"latents": latents, "sigma": sigma, **condition.tensors}
    rows = {name: tensor.numpy() for name, tensor in inputs.items()}
    return Case(str(size), rows, {"velocity": velocity.numpy()})


def _picture(student: Student, size: Size) -> Array:
    """The pipeline's own picture of ``PROMPTS[0]`` from ``SEED``, (1, H, W, 3) uint8."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    steps, draw = student.contract.steps, student.adapter.picture
    where = (size.height, size.width, generator, student.contract.of(steps))
    return np.asarray(draw(PROMPTS[0], steps, *where))[None]


@torch.no_grad()
def _staged(student: Student, size: Size) -> Array:
    """The same picture by the adapter, in float32 whatever type the weights have."""
    adapter, steps = student.adapter, student.contract.steps
    condition = _encode(student, [PROMPTS[0]])
    shape = (1, *adapter.latent_shape(size.height, size.width))
    latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SEED))
    sigmas = adapter.sigmas(steps, size.height, size.width, student.contract.of(steps))
    with _float32(student, "transformer"):
        for sigma, following in pairwise(sigmas):
            level = torch.full((1,), sigma)
            velocity = adapter.velocity(adapter.transformer, latents, level, condition)
            latents = latents + (following - sigma) * velocity
    with _float32(student, "vae"):
        processor = adapter.pipeline.image_processor
        return np.stack(processor.postprocess(adapter.decode(latents), output_type="pil"))


def _encode(student: Student, prompts: list[str]) -> Any:
    with _float32(student, "text_encoder"):
        return student.adapter.encode(prompts)


@contextmanager
def _float32(student: Student, prefix: str) -> Iterator[None]:
    """Networks whose component's name begins so compute in float32 for a while."""
    with ExitStack() as stack:
        for name, network in student.adapter.networks.items():
            if name.startswith(prefix):
                stack.enter_context(float32(network))
        yield
