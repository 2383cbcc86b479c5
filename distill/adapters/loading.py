"""Choose the adapter from a pipeline's ``model_index.json`` and load the pipeline for it."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from distill.adapters.adapter import Adapter, check_scheduler
from distill.adapters.components import (
    Components,
    check_files,
    class_of,
    first_line,
    load_components,
    load_shapes,
)
from distill.adapters.registry import ARCHITECTURES, OTHER_STEPS, adapter_class
from distill.adapters.single_file import SingleFile
from distill.errors import DistillError


def load_adapter(
    path_or_name: str,
    dtype: torch.dtype | None = torch.float32,
    max_sequence_length: int | None = None,
    single_file: Path | None = None,
) -> Adapter:
    """Load a pipeline by folder or hub name, with all weights in ``dtype``.

    Components that ``model_index.json`` lists as null (a pipeline without T5) stay absent, and so
    do those that the adapter ignores.

    Args:
        path_or_name: a diffusers folder, or a name on the hub.
        dtype: of all weights; None leaves each component its files' own, mapped into memory: all
            processes of a machine share them, and what is not read takes none.
        max_sequence_length: text tokens; None takes what the pipeline takes.
        single_file: a checkpoint in one file, whose networks are taken instead of the pipeline's.

    Raises:
        DistillError: nothing there, not a known flow-matching pipeline, incomplete or damaged.
    """
    parts = _parts(path_or_name)
    folder = pipeline_folder(path_or_name)
    check_files(folder, parts.components)
    inside = None
    if single_file is not None:
        text_encoders = adapter_class(parts.pipeline.__name__).text_encoders
        inside = SingleFile(single_file, text_encoders)
    loaded = load_components(folder, parts.components, dtype, inside)
    _restore_shift(folder / "cdm.json", loaded)
    return parts.adapter(loaded, max_sequence_length)


def load_skeleton(path_or_name: str, max_sequence_length: int | None = None) -> Adapter:
    """An adapter whose networks are on the meta device; of a hub name small files are fetched.

    Raises:
        DistillError: nothing there, no known flow-matching pipeline, a configuration is missing.
    """
    parts = _parts(path_or_name)
    loaded = load_shapes(path_or_name, parts.components)
    _restore_shift(Path(path_or_name) / "cdm.json", loaded)
    return parts.adapter(loaded, max_sequence_length)


def _restore_shift(card: Path, loaded: dict[str, Any]) -> None:
    """Undo ``distill.stock``: a student's scheduler is right for one number of steps alone."""
    try:
        shift = json.loads(card.read_text(encoding="utf-8")).get("shift")
    except (OSError, ValueError, AttributeError):
        return  # no student, or a card that its reader refuses
    if type(shift) in (int, float) and not loaded["scheduler"].config.get("use_dynamic_shifting"):
        scheduler = loaded["scheduler"]
        loaded["scheduler"] = type(scheduler).from_config(
            scheduler.config, shift=shift, shift_terminal=None
        )


def pipeline_folder(path_or_name: str) -> Path:
    """The local folder of a pipeline; for a hub name that of its download.

    Raises:
        DistillError: it is not downloaded, since it cannot be taken, or the download failed.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    _parts(path_or_name)
    try:
        return Path(DiffusionPipeline.download(path_or_name))
    except Exception as error:  # each of the libraries below raises its own kinds
        raise DistillError(f"{path_or_name} cannot be downloaded: {first_line(error)}") from error


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


@dataclass(frozen=True)
class _Parts:
    """What a pipeline is made of: its class and library and class of its components."""

    pipeline: Any
    components: Components

    def adapter(self, loaded: dict[str, Any], max_sequence_length: int | None) -> Adapter:
        """The adapter around the loaded components; those that are absent are None."""
        made = adapter_class(self.pipeline.__name__)
        absent = dict.fromkeys(_needed(self.pipeline) - loaded.keys())
        adapter: Adapter = made(self.pipeline(**absent, **loaded), max_sequence_length)
        return adapter


def _parts(path_or_name: str) -> _Parts:
    """As ``model_index.json`` has them, without what the adapter ignores."""
    index = model_index(path_or_name)
    class_name = index.get("_class_name")
    if class_name in OTHER_STEPS:
        raise DistillError(
            f"{path_or_name} is a {class_name}, which {OTHER_STEPS[class_name]}; this package "
            f"takes flow matching by Euler steps; known pipelines: {', '.join(ARCHITECTURES)}"
        )
    if not isinstance(class_name, str) or class_name not in ARCHITECTURES:
        raise DistillError(
            f"{path_or_name} is a {class_name}, not a flow-matching pipeline this package has an "
            f"adapter for; known pipelines: {', '.join(ARCHITECTURES)}"
        )
    adapter, pipeline = adapter_class(class_name), getattr(diffusers, class_name)
    if "transformer" not in index:  # LongCat-Image's first index; its folder is there
        config = Path(path_or_name) / "transformer" / "config.json"
        if config.is_file():
            saved = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
            index["transformer"] = ["diffusers", saved]
    components = {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if name in inspect.signature(pipeline).parameters
        and name not in adapter.ignored
        and isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(part, str) for part in entry)
    }
    required = _needed(pipeline) - adapter.optional - adapter.ignored
    required |= {
        name.replace("text_encoder", "tokenizer")
        for name in components
        if name.startswith("text_encoder")
    }
    if missing := sorted(required - components.keys()):
        raise DistillError(
            f"{path_or_name}: model_index.json lists no {' and no '.join(missing)}, which "
            f"{class_name} needs"
        )
    try:
        text = Path(path_or_name, "scheduler", "scheduler_config.json").read_text(encoding="utf-8")
        settings = dict(json.loads(text))
    except (OSError, ValueError, TypeError):
        settings = {}  # a hub name, or a file that diffusers says more of
    check_scheduler(components["scheduler"][1], settings)
    wanted = get_type_hints(pipeline.__init__)
    for name, entry in components.items():
        # Of tokenizers the hints are not meant so strictly.
        found, hint = class_of(Path(path_or_name) / name, *entry), wanted[name]
        if issubclass(found, nn.Module) and not issubclass(found, hint):
            raise DistillError(
                f"{path_or_name}: model_index.json has {found.__name__} as {name}; {class_name} "
                f"takes {hint.__name__}"
            )
    return _Parts(pipeline, components)


def _needed(pipeline: Any) -> set[str]:
    """What the class must be given."""
    parameters = inspect.signature(pipeline).parameters.values()
    return {each.name for each in parameters if each.default is each.empty}
