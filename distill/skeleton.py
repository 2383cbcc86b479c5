"""A pipeline's adapter from its configuration files alone: every shape, no weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from distill.adapters import Adapter, Condition
from distill.adapters.loading import ADAPTERS, model_index
from distill.errors import DistillError


def load_skeleton(path_or_name: str, max_sequence_length: int | None = None) -> Adapter:
    """An adapter whose networks are on the meta device; of a hub name small files are fetched.

    Raises:
        DistillError: nothing there, no known flow-matching pipeline, a configuration is missing.
    """
    index = model_index(path_or_name)
    if index.get("_class_name") not in ADAPTERS:
        raise DistillError(
            f"{path_or_name} is a {index.get('_class_name')}, not a flow-matching pipeline that "
            f"can be distilled; known: {', '.join(ADAPTERS)}"
        )
    pipeline_class, adapter_class = ADAPTERS[index["_class_name"]]
    entries = {n: e for n, e in index.items() if isinstance(e, list) and len(e) == 2}
    # LongCat's text processor only rewrites prompts.
    absent = {n for n, entry in entries.items() if n == "text_processor" or None in entry}
    parts = {
        name: None if name in absent else _part(path_or_name, name, entry)
        for name, entry in entries.items()
    }
    return adapter_class(pipeline_class(**parts), max_sequence_length)


def networks_of(adapter: Adapter) -> dict[str, nn.Module]:
    """The pipeline's networks by name."""
    parts = adapter.pipeline.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module)}


def condition_of(adapter: Adapter, rows: int) -> Condition:
    """Empty embeddings of the shape that ``encode`` gives."""
    config = adapter.pipeline.transformer.config
    tokens = adapter.pipeline.tokenizer_max_length
    if adapter.name == "sd3":
        tokens += adapter.max_sequence_length  # T5's, behind CLIP's
        pooled = torch.empty(rows, config.pooled_projection_dim)
    else:
        pooled = None
    return Condition(torch.empty(rows, tokens, config.joint_attention_dim), pooled)


def _part(path_or_name: str, name: str, entry: list[str]) -> Any:
    library, class_name = entry
    try:
        part_class = getattr(importlib.import_module(library), class_name)
        if not issubclass(part_class, nn.Module):
            return part_class.from_pretrained(path_or_name, subfolder=name)
        with torch.device("meta"):
            if library == "transformers":
                config = part_class.config_class.from_pretrained(path_or_name, subfolder=name)
                return part_class(config)
            return part_class.from_config(part_class.load_config(path_or_name, subfolder=name))
    except Exception as error:  # each of the libraries raises its own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DistillError(f"{path_or_name}: {name} cannot be read: {reason}") from error
