"""Choose the adapter from a pipeline's ``model_index.json`` and load the pipeline for it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, LongCatImagePipeline, StableDiffusion3Pipeline

from distill.adapters.adapter import Adapter
from distill.adapters.components import check_files, first_line, load_components
from distill.adapters.longcat import LongCatAdapter
from distill.adapters.sd3 import Sd3Adapter
from distill.errors import DistillError

ADAPTERS: dict[str, tuple[Any, type[Sd3Adapter] | type[LongCatAdapter]]] = {
    "StableDiffusion3Pipeline": (StableDiffusion3Pipeline, Sd3Adapter),
    "LongCatImagePipeline": (LongCatImagePipeline, LongCatAdapter),
}
# What a pipeline's class can do without: SD3's T5 and IP adapter, LongCat's prompt rewriting.
_OPTIONAL = {
    "text_encoder_3",
    "tokenizer_3",
    "image_encoder",
    "feature_extractor",
    "text_processor",
}


def load_adapter(
    path_or_name: str, dtype: torch.dtype = torch.float32, max_sequence_length: int | None = None
) -> Adapter:
    """Load a pipeline by folder or hub name, with all weights in ``dtype``.

    Components that ``model_index.json`` lists as null (a pipeline without T5) stay absent, and so
    does LongCat's text processor, which only rewrites prompts.

    Args:
        path_or_name: a diffusers folder, or a name on the hub.
        dtype: of all weights.
        max_sequence_length: text tokens; None takes what the pipeline takes.

    Raises:
        DistillError: nothing there, not a known flow-matching pipeline, incomplete or damaged.
    """
    index = model_index(path_or_name)
    class_name = index.get("_class_name")
    if class_name not in ADAPTERS:
        raise DistillError(
            f"{path_or_name} is a {class_name}, not a flow-matching pipeline this package has an "
            f"adapter for; known pipelines: {', '.join(ADAPTERS)}"
        )
    pipeline_class, adapter_class = ADAPTERS[class_name]
    present = _components(path_or_name, index, pipeline_class)
    folder = pipeline_folder(path_or_name)
    check_files(folder, present)
    components = load_components(folder, present, dtype)
    absent = {name: None for name in _expected(pipeline_class) if name not in present}
    return adapter_class(pipeline_class(**components, **absent), max_sequence_length)


def pipeline_folder(path_or_name: str) -> Path:
    """The local folder of a pipeline; for a hub name that of its download.

    Raises:
        DistillError: the download failed.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    try:
        return Path(DiffusionPipeline.download(path_or_name))
    except Exception as error:  # each of the libraries below raises its own kinds
        raise DistillError(f"{path_or_name} cannot be downloaded: {first_line(error)}") from error


def _components(
    path_or_name: str, index: dict[str, Any], pipeline_class: Any
) -> dict[str, tuple[str, str]]:
    """Library and class of every component to be loaded."""
    expected = _expected(pipeline_class)
    present = {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if name in expected
        and name != "text_processor"
        and isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(part, str) for part in entry)
    }
    required = [name for name in expected if name not in _OPTIONAL]
    required += [
        name.replace("text_encoder", "tokenizer")
        for name in present
        if name.startswith("text_encoder")
    ]
    missing = sorted({*required} - present.keys())
    if missing:
        raise DistillError(
            f"{path_or_name}: model_index.json lists no {' and no '.join(missing)}, which "
            f"{pipeline_class.__name__} needs"
        )
    return present


def _expected(pipeline_class: Any) -> list[str]:
    """The components the class is made of."""
    return list(inspect.signature(pipeline_class).parameters)


def model_index(path_or_name: str) -> dict[str, Any]:
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
