"""Read a student: a diffusers folder, with the distiller's ``cdm.json`` where there is one."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from cdm_serve.engine.manifest import file_sha256
from distill.adapters import Adapter, load_adapter
from distill.adapters.components import unknown_keys
from distill.adapters.registry import exporter_class
from distill.errors import DistillError
from export.architectures.architecture import Architecture
from export.contract import Contract, contract
from export.errors import ExportError
from export.layout import check_pipeline, is_single_file, lora_file
from export.parts import assembled, merge
from export.request import Lora, Sampling, Size
from export.tiny import load_tiny

CARD_FORMAT = 1
_AS_THE_STUDENT = Sampling()


@dataclass(frozen=True)
class Student:
    """A loaded student and how it is meant to be sampled; ``tiny`` is a second decoder for it."""

    name: str
    adapter: Adapter
    contract: Contract
    size: Size
    sha256: str
    tiny: nn.Module | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """What its architecture asks of the exporter."""
        made: Architecture = exporter_class(type(self.adapter.pipeline).__name__)(self.adapter)
        return made

    @property
    def unread(self) -> dict[str, list[str]]:
        """By component, what its configuration says that this diffusers knows nothing of."""
        parts = self.adapter.pipeline.components.items()
        found = {name: unknown_keys(part) for name, part in parts if isinstance(part, ConfigMixin)}
        return {name: keys for name, keys in found.items() if keys}


def load_student(
    source: Path,
    sampling: Sampling = _AS_THE_STUDENT,
    base: Path | None = None,
    loras: tuple[Lora, ...] = (),
    dtype: torch.dtype = torch.float32,
    decoder: Path | None = None,
) -> Student:
    """Load a student with all weights in ``dtype``; those of that type stay in their files.

    A folder without ``cdm.json`` (a few-step student made elsewhere) is taken with diffusers'
    own defaults: the transformer's sample size and the pipeline's text length.

    Args:
        source: a diffusers folder or a hub name; with ``base`` a transformer, a single-file
            checkpoint or a LoRA.
        sampling: what is said by hand of how it is sampled.
        base: the pipeline that the other components are taken from.
        loras: files to be merged into the weights, each with its scale.
        dtype: of all weights.
        decoder: the tiny one's folder or hub name.

    Raises:
        ExportError: no diffusers folder, an unknown architecture, a damaged file, or weights
            that are not finite.
    """
    if base is not None and (file := lora_file(source)) is not None:
        loras = ((file, 1.0), *loras)
    single = source if is_single_file(source) else None
    with assembled(source, base) as folder:
        return _load(folder, source, base, sampling, loras, dtype, single, decoder)


def _load(
    folder: Path,
    source: Path,
    base: Path | None,
    sampling: Sampling,
    loras: tuple[Lora, ...],
    dtype: torch.dtype,
    single: Path | None,
    decoder: Path | None,
) -> Student:
    index = check_pipeline(folder, tuple(file for file, _ in loras))
    diffusers_logging.disable_progress_bar()  # one bar per file of weights, over our own lines
    transformers_logging.disable_progress_bar()
    card = _read_card(folder / "cdm.json")
    try:
        adapter = load_adapter(str(folder), dtype, card.get("max_sequence_length"), single)
    except DistillError as error:
        raise ExportError(str(error)) from error
    if card and card["architecture"] != adapter.name:
        raise ExportError(
            f"{folder / 'cdm.json'} says architecture {card['architecture']!r}, but the pipeline "
            f"beside it is {adapter.name!r}"
        )
    tiny = None if decoder is None else load_tiny(decoder, adapter)
    merge(adapter, loras)
    networks = adapter.networks | ({} if tiny is None else {"tiny_decoder": tiny})
    for name, network in networks.items():
        for key, weight in network.state_dict().items():
            if not torch.isfinite(weight).all():
                why = (
                    " in fp16; choose another --precision"
                    if weight.dtype == torch.float16
                    else "; the student is broken"
                )
                raise ExportError(f"{name}: weight {key} has values that are not finite{why}")
    adapter.pipeline.set_progress_bar_config(disable=True)
    side = adapter.default_side
    return Student(
        name=card.get("name", _name(source)),
        adapter=adapter,
        contract=contract(source, card, index, adapter, sampling, base),
        size=Size(card.get("width", side), card.get("height", side)),
        sha256=_sha256(folder, loras, single),
        tiny=tiny,
    )


def _name(source: Path) -> str:
    """A model name: the folder's or, of ``checkpoint-1000/transformer``, that of the one above.

    Of ``models--OWNER--NAME/snapshots/0123`` in a hub's cache it is ``NAME``. Links are not
    followed: what they lead to there is called by its hash.
    """
    path = Path(os.path.abspath(source))  # noqa: PTH100
    path = path.parent if path.name == "transformer" else path
    if path.parent.name == "snapshots":
        return path.parents[1].name.rpartition("--")[2]
    return path.stem if path.is_file() else path.name


def _sha256(folder: Path, loras: tuple[Lora, ...], single: Path | None) -> str:
    digest = folder_sha256(folder)
    more = "" if single is None else file_sha256(single)
    more += "".join(f"{file_sha256(file)} {scale}" for file, scale in loras)
    return hashlib.sha256((digest + more).encode()).hexdigest() if more else digest


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
