"""``export.json``: what serving needs to know of an export, and the stamps that identify it.

Fields, all of them present unless said otherwise:

- ``format``: 1. What is added to a format may be ignored by an older reader.
- ``name``, ``architecture`` (the adapter's name), ``student`` (``name``, ``sha256`` of the
  folder), ``versions`` of the packages that made the files.
- ``fingerprint``: SHA-256 of the hex digests, concatenated, of each component (its file, then its
  external data) in the order of ``components`` and then of each tokenizer.
- ``precision``: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``int8-weights`` or ``int4-weights``, the
  type of the weights and of the arithmetic inside the graphs; with ``int8`` that of transformer and
  decoders, while the text encoder is float32; with the last two that of matrices of transformer and
  text encoder, while all else is bfloat16. ``calibration``, only with ``int8``: number and SHA-256
  of the ``prompts`` that set the scales. What passes in and out is float32, int64 ids and masks,
  and uint8 pixels in each of them. ``opset``: of the graphs.
- ``max_batch``: the largest batch that was verified; serving must not exceed it.
- ``sizes`` (``WIDTHxHEIGHT``) that were verified, ``default_size``, ``default_steps``.
- ``any_size``, absent where the sigmas depend on the size: ``multiple``, which divides the sides of
  all other sizes that can be made, and their ``longest_side`` in pixels or ``null``.
- ``views``, only of a student that edits pictures: by size, width, height and Pillow's filter of
  each resize, in turn, by which the text encoder's ``image`` is made of the picture.
- ``latents``: ``channels`` and ``downscale``, pixels per latent along a side.
- ``contract``: the ``grid`` of sigmas (``even``, or the pipeline's ``default``), by number of
  steps those that have ``own`` ones, the ``source`` of both and, with a guidance embedding, the
  ``guidance`` that is in the graph.
- ``sigmas``: by size, by number of steps, the shifted grid of ``steps + 1`` values.
- ``tokenizers``, none if the text encoder was not exported: ``file``, ``sha256``, ``bytes``,
  ``length`` to cut and pad to, ``pad_id``, and ``quotation``: ``null`` if a prompt is tokenized
  whole with the file's own special tokens, ``"characters"`` if it is first split as
  ``cdm_serve.engine.quotation`` does, each piece tokenized without special tokens, the ids joined,
  cut and padded on the right. ``template``: the texts before and behind each prompt, tokenized and
  cut with it.
- ``components``: ``text_encoder``, ``transformer``, ``vae_decoder`` and, where the student's VAE
  has one, ``vae_encoder`` (an export without it takes no pictures) and, after ``--decoder``,
  ``tiny_decoder``, which takes and gives what ``vae_decoder`` does; or those that
  ``--components`` named (such an export is not for serving and has no ``config.pbtxt``). Each has
  ``file``, ``sha256``, ``bytes``, ``inputs`` and ``outputs`` (by name: ``dtype``, ``shape``,
  dynamic axes by name) and, where the weights lie beside the graph, ``data`` (``file``, ``sha256``,
  ``bytes``).
  Feed exactly the inputs listed: ``input_ids_K`` (B, L) are tokenizer K's ids and
  ``attention_mask_K`` (B, L), int64, 1 where they are no padding; the transformer takes latents,
  sigma and what the text encoder gives, and with ``views`` as ``picture`` the latents of the one
  that is edited. Templates, packing, position ids and timestep scaling are
  inside the graphs.
- ``runtimes``: those in which everything held on the machine of the export, so that serving may
  use them: ``openvino-f32``, ``openvino-bf16``, ``tensorrt``. Held means: within tolerance of
  torch, and on a CPU each sample has the same bits alone and in a batch. ONNX Runtime on a GPU is
  not tried by the export.
- ``verification``: ``level`` (``full``, ``quick`` or ``none``), ``runtimes`` compared in,
  ``components``, ``batch_invariance`` and ``pictures``
  (every figure with its tolerance), ``picture``: the worst picture; with a tiny decoder
  ``tiny_psnr_db``, the least of its pictures in dB from those of ``vae_decoder``.
- ``tensorrt``, only after ``--to tensorrt``: see ``export.tensorrt``. Its files are stamped there.

Nothing depends on time or place: the same student, options, versions and processor give the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from cdm_serve.engine.manifest import FORMAT, file_entry
from export.plan import Plan
from export.request import Size
from export.student import Student

MOST_STEPS = 16
# Larger than any that one asks for: a dynamic shift would be another one.
ANOTHER_SIZE = Size(8192, 8192)
# What the files depend on, besides the student.
PACKAGES = (
    "cdm-serve", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime",
    "openvino",
)  # fmt: skip


def manifest(
    student: Student, plan: Plan, folder: Path, engines: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The contents of ``export.json`` for the files in ``folder``, before the verification."""
    components = {component: _component(folder, component) for component in plan.components}
    tokenizers = [
        {
            **file_entry(folder / f"tokenizer_{i}.json"),
            "length": tokenizer.length,
            "pad_id": tokenizer.pad_id,
            "quotation": "characters" if tokenizer.quotation else None,
            "template": list(tokenizer.template),
        }
        for i, tokenizer in enumerate(plan.tokenizers(student))
    ]
    digests = []
    for entry in components.values():
        digests += [entry["sha256"], entry.get("data", {}).get("sha256", "")]
    digests += [tokenizer["sha256"] for tokenizer in tokenizers]
    sizes = plan.sizes
    channels, latent_height, _ = student.adapter.latent_shape(sizes[0].height, sizes[0].width)
    default = student.size if student.size in sizes else sizes[0]
    contents: dict[str, Any] = {
        "format": FORMAT,
        "name": plan.name,
        "architecture": student.adapter.name,
        "student": {"name": student.name, "sha256": student.sha256},
        "fingerprint": _text_sha256("".join(digests)),
        "versions": {package: version(package) for package in PACKAGES},
        "opset": plan.precision.opset,
        "precision": plan.precision.name,
        "max_batch": plan.max_batch,
        "sizes": [str(size) for size in sizes],
        "default_size": str(default),
        "default_steps": student.contract.steps,
        "contract": student.contract.to_json(),
        "latents": {"channels": channels, "downscale": sizes[0].height // latent_height},
        "sigmas": {str(size): _grids(student, size) for size in sizes},
        "tokenizers": tokenizers,
        "components": components,
        "runtimes": [],
        "verification": {},
    }
    if plan.calibration:
        contents["versions"]["nncf"] = version("nncf")
        contents["calibration"] = {
            "prompts": len(plan.calibration),
            "sha256": _text_sha256("\n".join(plan.calibration)),
        }
    grids = contents["sigmas"].values()
    if student.adapter.needs_picture:
        views = student.adapter.views
        contents["views"] = {str(size): views(size.height, size.width) for size in sizes}
    elif all(each == _grids(student, ANOTHER_SIZE) for each in grids):
        multiple, longest = student.adapter.multiple, student.architecture.longest_side
        contents["any_size"] = {"multiple": multiple, "longest_side": longest}
    return contents | ({"tensorrt": engines} if engines is not None else {})


def _grids(student: Student, size: Size) -> dict[str, list[float]]:
    """Sigmas by number of steps."""
    where, contract = (size.height, size.width), student.contract
    return {
        str(steps): student.adapter.sigmas(steps, *where, contract.of(steps))
        for steps in range(1, max(MOST_STEPS, contract.steps) + 1)
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
        **file_entry(path),
        "inputs": {value.name: _tensor(value) for value in graph.input},
        "outputs": {value.name: _tensor(value) for value in graph.output},
    }
    if data.exists():
        entry["data"] = file_entry(data)
    return entry


def _tensor(value: Any) -> dict[str, Any]:
    """Element type and shape of a graph's input or output; dynamic axes by name."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return {
        "dtype": str(dtype),
        "shape": [axis.dim_param or axis.dim_value for axis in tensor.shape.dim],
    }


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
