"""Read a student: a diffusers folder, with the distiller's ``cdm.json`` where there is one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from distill.adapters import Adapter, load_adapter
from distill.errors import DistillError
from export.architectures import Architecture, architecture
from export.card import read_card
from export.errors import ExportError
from export.hashing import folder_sha256
from export.sizes import Size

DEFAULT_STEPS = 4


@dataclass(frozen=True)
class Student:
    """A loaded student and how it is meant to be sampled."""

    folder: Path
    name: str
    adapter: Adapter
    steps: int
    size: Size
    sha256: str
    has_card: bool

    @cached_property
    def architecture(self) -> Architecture:
        """What its architecture asks of the exporter."""
        return architecture(self.adapter)


def load_student(folder: Path) -> Student:
    """Load a student with all weights in float32.

    A folder without ``cdm.json`` (a few-step student made elsewhere) is taken with diffusers'
    own defaults: the transformer's sample size and the pipeline's text length, and 4 steps.

    Raises:
        ExportError: no diffusers folder, an unknown architecture, a damaged file, or weights
            that are not finite.
    """
    _check_folder(folder)
    diffusers_logging.disable_progress_bar()  # one bar per file of weights, over our own lines
    transformers_logging.disable_progress_bar()
    card = read_card(folder)
    try:
        adapter = load_adapter(
            str(folder),
            dtype=torch.float32,
            max_sequence_length=card.get("max_sequence_length"),
        )
    except DistillError as error:
        raise ExportError(str(error)) from error
    if card and card["architecture"] != adapter.name:
        raise ExportError(
            f"{folder / 'cdm.json'} says architecture {card['architecture']!r}, but the pipeline "
            f"beside it is {adapter.name!r}"
        )
    _check_weights(adapter)
    pipeline = adapter.pipeline
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    return Student(
        folder=folder,
        name=card.get("name", folder.resolve().name),
        adapter=adapter,
        steps=card.get("steps", DEFAULT_STEPS),
        size=Size(card.get("width", side), card.get("height", side)),
        sha256=folder_sha256(folder),
        has_card=bool(card),
    )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder; expected a student as cdm-distill writes it")
    path = folder / "model_index.json"
    if not path.is_file():
        raise ExportError(f"{folder} is not a diffusers folder: it has no model_index.json")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        components = [key for key, entry in index.items() if isinstance(entry, list) and entry[1]]
    except (ValueError, AttributeError, IndexError) as error:
        raise ExportError(f"{path} is not the index of a diffusers pipeline: {error}") from error
    for component in components:
        _check_not_pickled(folder / component)


def _check_not_pickled(place: Path) -> None:
    """Unpickling runs whatever code the file holds, so only safetensors are read."""
    for pickled in (*place.glob("*.bin"), *place.glob("*.pt"), *place.glob("*.ckpt")):
        if not any(place.glob("*.safetensors")):
            raise ExportError(
                f"{pickled} is a pickle, which is not loaded; save the student with safetensors"
            )


def _check_weights(adapter: Adapter) -> None:
    for name, component in adapter.pipeline.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        for key, weight in component.state_dict().items():
            if weight.is_meta:  # how diffusers leaves a weight that no file holds
                raise ExportError(f"{name}: weight {key} is missing from the student's files")
            if not torch.isfinite(weight).all():
                raise ExportError(
                    f"{name}: weight {key} has values that are not finite; the student is broken"
                )
