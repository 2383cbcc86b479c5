"""What torch makes of all that an export is compared on: each component, then whole pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from cdm_serve.engine.manifest import DECODERS, PICTURE
from distill.adapters import Condition
from export.errors import ExportError
from export.plan import Plan
from export.precision import float32
from export.request import Device, Size
from export.student import Student

Array = NDArray[Any]

PROMPTS = ("a fox in the snow", "", "two owls", 'a sign that says "open"')
SEED = 7
# Rows that torch computes at once have at most so many pixels, so that memory is bounded.
PIXELS = 2**20


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

    def first(self, batch: int) -> Case:
        """So many rows of it."""
        rows = {name: each[:batch] for name, each in self.rows.items()}
        return Case(self.size, rows, {n: each[:batch] for n, each in self.expected.items()})


@dataclass(frozen=True)
class Edited:
    """What a picture is made of where one is needed: (1, H, W, 3) pixels and their latents."""

    image: Array
    latents: Array


@dataclass(frozen=True)
class Reference:
    """What torch makes of all that an export is compared on: cases by component, and pictures."""

    cases: dict[str, list[Case]]
    pictures: dict[Size, Array]
    edited: dict[Size, Edited]


def check_device(device: Device) -> None:
    """See that torch can compute there.

    Raises:
        ExportError: it cannot.
    """
    if device == "cuda" and not torch.cuda.is_available():
        why = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ExportError(f"--device cuda: torch {torch.__version__} {why}; use --device cpu")


def reference(student: Student, plan: Plan) -> Reference:
    """All of it, so that the student can go before the first graph is loaded.

    Whole pictures are drawn only with all components.
    """
    if plan.level == "none":
        return Reference({}, {}, {})
    draw = _picture if plan.level == "full" else _staged
    sizes, device = plan.compared_sizes if plan.whole else (), plan.device
    needs_picture = student.adapter.needs_picture
    return Reference(
        {component: list(cases(student, plan, component)) for component in plan.components},
        {size: draw(student, size, device) for size in sizes},
        {size: _edited(student, size, device) for size in sizes if needs_picture},
    )


def cases(student: Student, plan: Plan, component: str) -> Iterator[Case]:
    """What a component is run on: each of the plan's batches, at every size it compares."""
    sized = component != "text_encoder" or student.adapter.needs_picture
    for size in plan.compared_sizes if sized else (None,):
        # Pictures that come in are encoded one by one.
        for batch in plan.compared_batches if component != "vae_encoder" else (1,):
            yield _case(student, component, size, batch, plan.device)


@torch.no_grad()
def _case(student: Student, component: str, size: Size | None, batch: int, device: Device) -> Case:
    adapter = student.adapter
    prompts = [f"{PROMPTS[i % len(PROMPTS)]}{'!' * (i // len(PROMPTS))}" for i in range(batch)]
    if component == "text_encoder":
        expected = _encode(student, prompts, size, device).tensors
        rows: dict[str, Any] = {"prompts": prompts}
        if size is not None:
            rows["image"] = _images(batch, size)
        texts = {name: each for name, each in expected.items() if name != PICTURE}
        return Case(None if size is None else str(size), rows, _arrays(texts))
    assert size is not None
    shape = (batch, *adapter.latent_shape(size.height, size.width))
    latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SEED))
    if component == "vae_encoder":
        image = _images(batch, size)
        return Case(str(size), {"image": image}, {"latents": _latents(student, image, device)})
    if component in DECODERS.values():
        tiny = student.tiny if component == "tiny_decoder" else None
        few = (latents[rows] for rows in _few(batch, size))
        image = np.concatenate([_decode(student, each, device, tiny) for each in few])
        return Case(str(size), {"latents": latents.numpy()}, {"image": image})
    # Each sample at a noise level of its own, as in a batch of requests at various steps.
    sigma = torch.linspace(1.0, 0.1, batch)
    condition = _encode(student, prompts, size, device)
    with _float32(student, "transformer", device):
        velocity = torch.cat(
            [
                adapter.velocity(
                    adapter.transformer,
                    latents[rows].to(device),
                    sigma[rows].to(device),
                    condition[rows],
                )
                for rows in _few(batch, size)
            ]
        )
    rows = _arrays({"latents": latents, "sigma": sigma, **condition.tensors})
    return Case(str(size), rows, _arrays({"velocity": velocity}))


def _few(batch: int, size: Size) -> Iterator[slice]:
    few = max(1, PIXELS // (size.width * size.height))
    return (slice(first, first + few) for first in range(0, batch, few))


def _picture(student: Student, size: Size, device: Device = "cpu") -> Array:
    """The pipeline's own picture of ``PROMPTS[0]`` from ``SEED``, (1, H, W, 3) uint8."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    steps, draw = student.contract.steps, student.adapter.picture
    where = (size.height, size.width, generator, student.contract.of(steps))
    image = Image.fromarray(_images(1, size)[0]) if student.adapter.needs_picture else None
    with _float32(student, "", device):
        return np.asarray(draw(PROMPTS[0], steps, *where, image))[None]


@torch.no_grad()
def _staged(student: Student, size: Size, device: Device = "cpu") -> Array:
    """The same picture by the adapter, one network after the other."""
    adapter, steps = student.adapter, student.contract.steps
    condition = _encode(student, [PROMPTS[0]], size, device)
    shape = (1, *adapter.latent_shape(size.height, size.width))
    latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SEED)).to(device)
    sigmas = adapter.sigmas(steps, size.height, size.width, student.contract.of(steps))
    with _float32(student, "transformer", device):
        for sigma, following in pairwise(sigmas):
            level = torch.full((1,), sigma, device=device)
            velocity = adapter.velocity(adapter.transformer, latents, level, condition)
            latents = latents + (following - sigma) * velocity
    return _decode(student, latents, device)


def _decode(
    student: Student, latents: torch.Tensor, device: Device, tiny: nn.Module | None = None
) -> Array:
    """Latents (B, C, h, w) -> pictures (B, H, W, 3), uint8, as the pipeline makes them."""
    adapter = student.adapter if tiny is None else student.adapter.with_vae(tiny)
    with float32(adapter.pipeline.vae, device):
        pictures = adapter.decode(latents.to(device))
    made = student.adapter.pipeline.image_processor.postprocess(pictures, output_type="pil")
    return np.stack(made)


def _encode(student: Student, prompts: list[str], size: Size | None, device: Device) -> Condition:
    """The condition of prompts and, where they are needed, of pictures of a size."""
    condition = student.adapter.condition
    with _float32(student, "text_encoder", device), _float32(student, "vae", device):
        if not student.adapter.needs_picture or size is None:
            return condition(prompts, None)
        pictures = _preprocessed(student, _images(len(prompts), size)).to(device)
        few = [condition(prompts[rows], pictures[rows]) for rows in _few(len(prompts), size)]
        names = few[0].tensors
        return Condition({name: torch.cat([c.tensors[name] for c in few]) for name in names})


def _images(batch: int, size: Size) -> Array:
    """(B, H, W, 3) pixels."""
    shape = (batch, size.height, size.width, 3)
    return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)


def _preprocessed(student: Student, images: Array) -> Any:
    return student.adapter.pipeline.image_processor.preprocess([*map(Image.fromarray, images)])


def _latents(student: Student, images: Array, device: Device) -> Array:
    with _float32(student, "vae", device), torch.no_grad():
        latents = student.adapter.encode_pictures(_preprocessed(student, images).to(device))
    return _arrays({"latents": latents})["latents"]


def _edited(student: Student, size: Size, device: Device) -> Edited:
    image = _images(1, size)
    return Edited(image, _latents(student, image, device))


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


@contextmanager
def _float32(student: Student, prefix: str, device: Device) -> Iterator[None]:
    """Networks whose component's name begins so compute in float32, on the device, for a while."""
    with ExitStack() as stack:
        for name, network in student.adapter.networks.items():
            if name.startswith(prefix):
                stack.enter_context(float32(network, device))
        yield
