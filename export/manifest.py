"""``export.json``: what serving needs to know of an export, and the stamps that identify it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from export.graphs import OPSET
from export.hashing import combined_sha256, file_sha256
from export.session import COMPONENTS
from export.tokenizers import pipeline_tokenizers

if TYPE_CHECKING:
    from export.compare import Verification
    from export.sizes import Size
    from export.student import Student

FORMAT = 1
MOST_STEPS = 16
# What the files depend on, besides the student.
PACKAGES = ("cdm-serve", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


def manifest(
    student: Student, name: str, sizes: tuple[Size, ...], folder: Path, verification: Verification
) -> dict[str, Any]:
    """The contents of ``export.json`` for the files in ``folder``.

    ``fingerprint`` is the SHA-256 of the hex digests, concatenated, of each component (its file,
    then its external data) in the order of ``components`` and then of each tokenizer. Nothing in
    it depends on time or place: the same student, options and versions give the same bytes.
    """
    components = {component: _component(folder, component) for component in COMPONENTS}
    tokenizers = _tokenizers(student, folder)
    digests = []
    for component in components.values():
        digests.append(component["sha256"])
        if "data" in component:
            digests.append(component["data"]["sha256"])
    digests += [tokenizer["sha256"] for tokenizer in tokenizers]
    channels, latent_height, _ = student.adapter.latent_shape(sizes[0].height, sizes[0].width)
    default = student.size if student.size in sizes else sizes[0]
    return {
        "format": FORMAT,
        "name": name,
        "architecture": student.adapter.name,
        "student": {"name": student.name, "sha256": student.sha256},
        "fingerprint": combined_sha256(digests),
        "versions": {package: version(package) for package in PACKAGES},
        "opset": OPSET,
        "precision": "fp32",
        "sizes": [str(size) for size in sizes],
        "default_size": str(default),
        "default_steps": student.steps,
        "latents": {"channels": channels, "downscale": sizes[0].height // latent_height},
        "sigmas": {str(size): _grids(student, size) for size in sizes},
        "tokenizers": tokenizers,
        "components": components,
        "verification": verification.to_json(),
    }


def write_manifest(contents: dict[str, Any], folder: Path) -> None:
    """Write ``export.json``, last of all files."""
    text = json.dumps(contents, indent=2, allow_nan=False)
    (folder / "export.json").write_text(text + "\n", encoding="utf-8")


def _component(folder: Path, component: str) -> dict[str, Any]:
    path = folder / f"{component}.onnx"
    data = path.with_name(f"{path.name}.data")
    graph = onnx.load(path, load_external_data=False).graph
    entry = {
        "file": path.name,
        "sha256": file_sha256(path),
        "inputs": {value.name: _tensor(value) for value in graph.input},
        "outputs": {value.name: _tensor(value) for value in graph.output},
    }
    if data.exists():
        entry["data"] = {"file": data.name, "sha256": file_sha256(data)}
    return entry


def _tensor(value: Any) -> dict[str, Any]:
    """Element type and shape of a graph's input or output; dynamic axes by name."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return {
        "dtype": str(dtype),
        "shape": [axis.dim_param or axis.dim_value for axis in tensor.shape.dim],
    }


def _tokenizers(student: Student, folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "file": f"tokenizer_{i}.json",
            "sha256": file_sha256(folder / f"tokenizer_{i}.json"),
            "length": tokenizer.length,
            "pad_id": tokenizer.pad_id,
        }
        for i, tokenizer in enumerate(pipeline_tokenizers(student.adapter))
    ]


def _grids(student: Student, size: Size) -> dict[str, list[float]]:
    """The shifted sigmas for every number of steps a request may ask for."""
    most = max(MOST_STEPS, student.steps)
    return {
        str(steps): student.adapter.sigmas(steps, size.height, size.width)
        for steps in range(1, most + 1)
    }
