"""int8 graphs: NNCF quantizes weights and activations, with scales fixed by drawn pictures.

Fixed scales are what lets a picture have the same bits in any batch; scales that are computed from
the activations span the batch, and a neighbour changes the picture.

NNCF smooths the transformer's activations first (SmoothQuant, arXiv 2211.10438) and corrects the
biases by the mean error that quantizing leaves.
"""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from cdm_serve.engine.manifest import DECODERS
from distill.errors import DistillError
from distill.prompt_sources import read_prompts
from export.errors import ExportError
from export.graphs import INLINE_LIMIT
from export.request import Size
from export.student import Student

# The text encoder is a small part of the time, and its errors reach every step.
QUANTIZED = ("transformer", "vae_decoder", "tiny_decoder")
PROMPTS = 64
# Requests may ask for any number of steps; these meet the sigmas of all of them.
STEPS = (1, 2, 4, 8)
# NNCF takes a graph as one protobuf message, which ends there.
LIMIT = 2**31

Row = dict[str, NDArray[Any]]  # a graph's inputs


def load_nncf() -> Any:
    """The package, asked for before any work.

    Raises:
        ExportError: it is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it reports its use to its makers
    try:
        return import_module("nncf")
    except ImportError as error:
        raise ExportError("--precision int8 needs NNCF: pip install 'cdm-serve[int8]'") from error


def check_size(student: Student) -> None:
    """See that no graph is too large.

    Raises:
        ExportError: one is.
    """
    parts = student.adapter.pipeline
    for component, module in (("transformer", parts.transformer), ("vae_decoder", parts.vae)):
        weights = sum(4 * parameter.numel() for parameter in module.parameters())
        if weights >= LIMIT:
            raise ExportError(
                f"--precision int8: {component} has {weights / 2**30:.1f} GiB of weights in "
                "float32, and at most 2 can be quantized; use fp16 or bf16"
            )


def calibration_prompts(source: str) -> tuple[str, ...]:
    """``PROMPTS`` of a source's prompts, spread over the whole of it.

    Raises:
        ExportError: it cannot be read.
    """
    try:
        prompts = read_prompts(source)
    except DistillError as error:
        raise ExportError(f"--calibration: {error}") from error
    chosen = np.linspace(0, len(prompts) - 1, min(PROMPTS, len(prompts))).astype(int)
    return tuple(prompts[i] for i in chosen)


@torch.no_grad()
def calibrate(
    student: Student, prompts: tuple[str, ...], sizes: tuple[Size, ...]
) -> dict[str, list[Row]]:
    """Draw a picture of each prompt in torch and keep what the graphs would have been given.

    That is, by component, inputs of one sample. Sizes and ``STEPS`` take turns; picture i starts
    from seed i.
    """
    adapter = student.adapter
    rows: dict[str, list[Row]] = {component: [] for component in QUANTIZED}
    for i, prompt in enumerate(prompts):
        size = sizes[i % len(sizes)]
        steps = STEPS[i // len(sizes) % len(STEPS)]
        shape = adapter.latent_shape(size.height, size.width)
        latents = torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(i))
        condition = adapter.encode([prompt])
        for sigma, following in pairwise(
            adapter.sigmas(steps, size.height, size.width, student.contract.of(steps))
        ):
            level = torch.full((1,), sigma)
            velocity = adapter.velocity(adapter.transformer, latents, level, condition)
            inputs = {"latents": latents, "sigma": level, **condition.tensors}
            rows["transformer"].append({name: each.numpy() for name, each in inputs.items()})
            latents = latents + (following - sigma) * velocity
        for decoder in DECODERS.values():
            rows[decoder].append({"latents": latents.numpy()})
    return rows


def quantize(path: Path, component: str, rows: list[Row]) -> None:
    """Replace a float32 graph by its quantized form; the same graph and rows give the same bytes.

    A large one's weights go to ``path`` + ``.data``.
    """
    nncf = load_nncf()
    if component == "transformer":
        kind, preset = nncf.ModelType.TRANSFORMER, nncf.QuantizationPreset.MIXED
    else:
        # No zero points: OpenVINO has no kernels with AMX for convolutions of what has one.
        kind, preset = None, nncf.QuantizationPreset.PERFORMANCE
    with redirect_stdout(StringIO()):  # no bars of its own over ours
        quantized = nncf.quantize(
            onnx.load(path),
            nncf.Dataset(rows),
            preset=preset,
            subset_size=len(rows),
            model_type=kind,
        )
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    onnx.save(
        quantized,
        path,
        save_as_external_data=quantized.ByteSize() > INLINE_LIMIT,
        location=data.name,
    )
