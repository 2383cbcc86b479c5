"""Choose the adapter from a pipeline's ``model_index.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline

from distill.adapters.adapter import Adapter
from distill.adapters.sd3 import Sd3Adapter
from distill.errors import DistillError

_ADAPTERS = {"StableDiffusion3Pipeline": (StableDiffusion3Pipeline, Sd3Adapter)}


def load_adapter(
    path_or_name: str, dtype: torch.dtype = torch.float32, max_sequence_length: int = 256
) -> Adapter:
    """Load a pipeline by folder or hub name, with all weights in ``dtype``.

    Components that ``model_index.json`` lists as null (a teacher without T5) stay absent.

    Raises:
        DistillError: nothing there, not a known flow-matching pipeline, or damaged files.
    """
    index = _model_index(path_or_name)
    class_name = index.get("_class_name")
    if class_name not in _ADAPTERS:
        raise DistillError(
            f"{path_or_name} is a {class_name}, not a flow-matching pipeline that can be "
            f"distilled; known: {', '.join(_ADAPTERS)}"
        )
    pipeline_class, adapter_class = _ADAPTERS[class_name]
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    try:
        pipeline = pipeline_class.from_pretrained(path_or_name, dtype=dtype, **absent)
    except (OSError, ValueError, KeyError) as error:
        raise DistillError(f"{path_or_name} cannot be loaded: {_first_line(error)}") from error
    return adapter_class(pipeline, max_sequence_length)


def pipeline_folder(path_or_name: str) -> Path:
    """The local folder of a pipeline; for a hub name that of its download."""
    folder = Path(path_or_name)
    return folder if folder.is_dir() else Path(DiffusionPipeline.download(path_or_name))


def _model_index(path_or_name: str) -> dict[str, Any]:
    """The pipeline's component list, from a local folder or the hub."""
    folder = Path(path_or_name)
    try:
        if folder.is_dir():
            index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        else:
            index = dict(DiffusionPipeline.load_config(path_or_name))
    except (OSError, ValueError) as error:
        what = "holds no readable model_index.json" if folder.is_dir() else "is no folder here"
        raise DistillError(
            f"{path_or_name} {what}, and is no model the hub gives; expected a diffusers folder or "
            "a hub name: check the path, or the connection to the hub"
        ) from error
    if not isinstance(index, dict):
        raise DistillError(f"{folder / 'model_index.json'} must hold a JSON object")
    # Tuples when diffusers read it, lists when json did.
    return {key: list(v) if isinstance(v, tuple) else v for key, v in index.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
