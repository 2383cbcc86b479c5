"""Compare an export with torch: each component, then whole pictures with diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils import logging
from numpy.typing import NDArray
from torch import Tensor

from export.compare import Comparison, Picture, Verification, max_abs, psnr_db, relative_rms
from export.session import OnnxPipeline
from export.tokenizers import load_tokenizer, pipeline_tokenizers

if TYPE_CHECKING:
    from distill.adapters import Condition, Sd3Adapter
    from export.sizes import Size
    from export.student import Student

BATCHES = (1, 3)
# float32 ONNX Runtime against torch measures 1e-6 to 1e-5; a wrong graph 1e-2 and more.
RELATIVE_RMS_TOLERANCE = 1e-4
# An error of 1e-6 can tip a value that lies on the edge between two levels.
PIXEL_TOLERANCE = 1.0
PICTURE_TOLERANCE_DB = 60.0
PROMPTS = ["a fox in the snow", "", "two owls"]
SEED = 7


def verify(student: Student, folder: Path, sizes: tuple[Size, ...]) -> Verification:
    """Compare the graphs and tokenizers in ``folder`` with the student they were made from."""
    onnx = OnnxPipeline(folder)
    ids = _input_ids(student.adapter, folder)
    with torch.no_grad(), _quiet(student.adapter):
        components = _components(onnx, student.adapter, ids, sizes)
        pictures = [_picture(onnx, student, ids, size) for size in sizes]
    return Verification(tuple(components), tuple(pictures))


def _components(
    onnx: OnnxPipeline,
    adapter: Sd3Adapter,
    ids: list[NDArray[np.int64]],
    sizes: tuple[Size, ...],
) -> list[Comparison]:
    conditions = [adapter.encode(PROMPTS[:batch]) for batch in BATCHES]
    comparisons = []
    for condition in conditions:
        comparisons += _text_encoder(onnx, ids, condition)
    for size in sizes:
        comparisons += [_transformer(onnx, adapter, condition, size) for condition in conditions]
    for size in sizes:
        comparisons += [_vae_decoder(onnx, adapter, batch, size) for batch in BATCHES]
    return comparisons


def _input_ids(adapter: Sd3Adapter, folder: Path) -> list[NDArray[np.int64]]:
    """The ids of ``PROMPTS`` from the written tokenizers, (3, L) each."""
    ids = []
    for i, source in enumerate(pipeline_tokenizers(adapter)):
        tokenizer = load_tokenizer(folder / f"tokenizer_{i}.json", source.length, source.pad_id)
        ids.append(np.array([e.ids for e in tokenizer.encode_batch(PROMPTS)], dtype=np.int64))
    return ids


def _text_encoder(
    onnx: OnnxPipeline, ids: list[NDArray[np.int64]], expected: Condition
) -> list[Comparison]:
    inputs = {f"input_ids_{i}": each[: len(expected)] for i, each in enumerate(ids)}
    prompt_embeds, pooled = onnx.run("text_encoder", **inputs)
    assert expected.pooled is not None
    return [
        _floats("text_encoder", "prompt_embeds", None, prompt_embeds, expected.prompt_embeds),
        _floats("text_encoder", "pooled", None, pooled, expected.pooled),
    ]


def _transformer(
    onnx: OnnxPipeline, adapter: Sd3Adapter, condition: Condition, size: Size
) -> Comparison:
    """Each sample at a noise level of its own, as in a batch of requests at different steps."""
    latents = _noise(adapter, size, len(condition))
    sigma = torch.linspace(1.0, 0.1, len(condition))
    expected = adapter.velocity(adapter.transformer, latents, sigma, condition)
    assert condition.pooled is not None
    (velocity,) = onnx.run(
        "transformer",
        latents=latents.numpy(),
        sigma=sigma.numpy(),
        prompt_embeds=condition.prompt_embeds.numpy(),
        pooled=condition.pooled.numpy(),
    )
    return _floats("transformer", "velocity", str(size), velocity, expected)


def _vae_decoder(onnx: OnnxPipeline, adapter: Sd3Adapter, batch: int, size: Size) -> Comparison:
    latents = _noise(adapter, size, batch)
    processor = adapter.pipeline.image_processor
    expected = np.stack(processor.postprocess(adapter.decode(latents), output_type="pil"))
    (image,) = onnx.run("vae_decoder", latents=latents.numpy())
    return Comparison(
        component="vae_decoder",
        output="image",
        batch=batch,
        size=str(size),
        max_abs=max_abs(image, expected),
        relative_rms=relative_rms(image, expected),
        measure="max_abs",
        tolerance=PIXEL_TOLERANCE,
    )


def _floats(
    component: str, output: str, size: str | None, actual: NDArray[Any], expected: Tensor
) -> Comparison:
    return Comparison(
        component=component,
        output=output,
        batch=len(expected),
        size=size,
        max_abs=max_abs(actual, expected.numpy()),
        relative_rms=relative_rms(actual, expected.numpy()),
        measure="relative_rms",
        tolerance=RELATIVE_RMS_TOLERANCE,
    )


def _picture(
    onnx: OnnxPipeline, student: Student, ids: list[NDArray[np.int64]], size: Size
) -> Picture:
    """One prompt and seed through the export and through ``StableDiffusion3Pipeline``."""
    adapter = student.adapter
    expected = adapter.pipeline(
        prompt=PROMPTS[0],
        height=size.height,
        width=size.width,
        num_inference_steps=student.steps,
        sigmas=[1.0 - i / student.steps for i in range(student.steps)],
        guidance_scale=1.0,
        max_sequence_length=adapter.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pil",
    ).images
    sigmas = adapter.sigmas(student.steps, size.height, size.width)
    noise = _noise(adapter, size, 1).numpy()
    actual = onnx.picture([each[:1] for each in ids], noise, sigmas)
    return Picture(str(size), psnr_db(actual, np.stack(expected)), PICTURE_TOLERANCE_DB)


def _noise(adapter: Sd3Adapter, size: Size, batch: int) -> Tensor:
    """The noise that ``SEED`` stands for, (batch, C, h, w)."""
    shape = adapter.latent_shape(size.height, size.width)
    return torch.randn((batch, *shape), generator=torch.Generator("cpu").manual_seed(SEED))


@contextmanager
def _quiet(adapter: Sd3Adapter) -> Iterator[None]:
    """No progress bar per picture and no notes on truncated prompts."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    adapter.pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
