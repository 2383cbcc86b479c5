"""Read a student: a diffusers folder, with the distiller's ``cdm.json`` where there is one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from cdm_serve.engine.manifest import file_sha256
from distill.adapters import Adapter, load_adapter
from distill.adapters.registry import exporter_class
from distill.errors import DistillError
from export.architectures.architecture import Architecture
from export.contract import Contract, contract
from export.errors import ExportError
from export.layout import check_pipeline, lora_file
from export.parts import assembled, merge
from export.request import Lora, Sampling, Size

CARD_FORMAT = 1
_AS_THE_STUDENT = Sampling()


@dataclass(frozen=True)
class Student:
    """A loaded student and how it is meant to be sampled."""

    name: str
    adapter: Adapter
    contract: Contract
    size: Size
    sha256: str

    @cached_property
    def architecture(self) -> Architecture:
        """What its architecture asks of the exporter."""
        made: Architecture = exporter_class(type(self.adapter.pipeline).__name__)(self.adapter)
        return made


def load_student(
    source: Path,
    sampling: Sampling = _AS_THE_STUDENT,
    base: Path | None = None,
    loras: tuple[Lora, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Student:
    """Load a student with all weights in ``dtype``; those of that type stay in their files.

    A folder without ``cdm.json`` (a few-step student made elsewhere) is taken with diffusers'
    own defaults: the transformer's sample size and the pipeline's text length.

    Args:
        source: a diffusers folder, or with ``base`` a transformer or a LoRA; or a hub name.
        sampling: what is said by hand of how it is sampled.
        base: the pipeline that the other components are taken from.
        loras: files to be merged into the weights, each with its scale.
        dtype: of all weights.

    Raises:
        ExportError: no diffusers folder, an unknown architecture, a damaged file, or weights
            that are not finite.
    """
    if base is not None and (file := lora_file(source)) is not None:
        loras = ((file, 1.0), *loras)
    with assembled(source, base) as folder:
        return _load(folder, source, sampling, loras, dtype)


def _load(
    folder: Path, source: Path, sampling: Sampling, loras: tuple[Lora, ...], dtype: torch.dtype
) -> Student:
    index = check_pipeline(folder, tuple(file for file, _ in loras))
    diffusers_logging.disable_progress_bar()  # one bar per file of weights, over our own lines
    transformers_logging.disable_progress_bar()
    card = _read_card(folder / "cdm.json")
    try:
        adapter = load_adapter(str(folder), dtype, card.get("max_sequence_length"))
    except DistillError as error:
        raise ExportError(str(error)) from error
    if card and card["architecture"] != adapter.name:
        raise ExportError(
            f"{folder / 'cdm.json'} says architecture {card['architecture']!r}, but the pipeline "
            f"beside it is {adapter.name!r}"
        )
    merge(adapter, loras)
    for name, network in adapter.networks.items():
        for key, weight in network.state_dict().items():
            if not torch.isfinite(weight).all():
                raise ExportError(
                    f"{name}: weight {key} has values that are not finite; the student is broken"
                )
    adapter.pipeline.set_progress_bar_config(disable=True)
    side = adapter.default_side
    return Student(
        name=card.get("name", _name(source)),
        adapter=adapter,
        contract=contract(source, card, index, adapter, sampling),
        size=Size(card.get("width", side), card.get("height", side)),
        sha256=_sha256(folder, loras),
    )


def _name(source: Path) -> str:
    """A model name: the folder's or, of ``checkpoint-1000/transformer``, that of the one above."""
    path = source.resolve() if source.exists() else source
    path = path.parent if path.name == "transformer" else path
    return path.stem if path.is_file() else path.name


def _sha256(folder: Path, loras: tuple[Lora, ...]) -> str:
    digest = folder_sha256(folder)
    if not loras:
        return digest
    merged = "".join(f"{file_sha256(file)} {scale}" for file, scale in loras)
    return hashlib.sha256((digest + merged).encode()).hexdigest()


def folder_sha256(folder: Path) -> str:
    """Hex digest of a diffusers folder: ``cdm.json``, the index and every component's files.

    A component's files count with their path, so moving one changes the digest; whatever else
    lies in the folder (a licence, pictures, the other formats of a hub download) does not count.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    paths = [folder / "cdm.json", folder / "model_index.json"]
    for component in sorted(index):
        paths += sorted((folder / component).rglob("*"))
    digests = [
        hashlib.sha256(path.relative_to(folder).as_posix().encode()).hexdigest() + file_sha256(path)
        for path in paths
        if path.is_file()
    ]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_card(path: Path) -> dict[str, Any]:
    """How the distiller says its student is to be sampled; empty where it says nothing."""
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise ExportError(
            f"{path} is not of format {CARD_FORMAT}; distil again with this version of cdm-distill"
        )
    for field in ("name", "architecture"):
        if not isinstance(card.get(field), str) or not card[field]:
            raise ExportError(f"{path}: {field} must be a non-empty string")
    for field, least in (("steps", 1), ("max_sequence_length", 0), ("height", 1), ("width", 1)):
        value = card.get(field)
        if type(value) is not int or value < least:
            raise ExportError(f"{path}: {field} must be an integer of at least {least}")
    return card
