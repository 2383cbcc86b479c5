"""The components of a pipeline's folder, loaded so that nothing is made up.

transformers fills what it does not find: a missing weight with random numbers, a missing
configuration with that of a model of billions of weights, a missing vocabulary with an empty one.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoImageProcessor,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from distill.adapters.single_file import SingleFile
from distill.errors import DistillError

Components = dict[str, tuple[str, str]]  # name -> library, class


@dataclass(frozen=True)
class PictureProcessor:
    """A processor's half for pictures, by Pillow; that for videos would need torchvision."""

    image_processor: Any


def check_files(folder: Path, components: Components) -> None:
    """That every component has the files without which something would be made up.

    Raises:
        DistillError: a folder, a network's configuration or a tokenizer's vocabulary is missing.
    """
    for name, entry in components.items():
        place = folder / name
        component_class = class_of(place, *entry)
        if not place.is_dir():
            raise DistillError(f"{folder} is incomplete: model_index.json lists {name}")
        if issubclass(component_class, nn.Module):
            _check_config(place / "config.json")
        elif issubclass(component_class, PreTrainedTokenizerBase):
            # Merges without a vocabulary are nothing.
            files = {*component_class.vocab_files_names.values()} - {"merges.txt"}
            if not any((place / file).is_file() for file in files):
                raise DistillError(
                    f"{place} has no vocabulary; expected one of {', '.join(sorted(files))}"
                )


def load_components(
    folder: Path,
    components: Components,
    dtype: torch.dtype | None,
    single_file: SingleFile | None = None,
) -> dict[str, Any]:
    """Every component, those with weights in ``dtype``; None is that of each one's files.

    Args:
        folder: of the pipeline.
        components: to be loaded.
        dtype: of all weights.
        single_file: its networks are taken instead of the folder's.

    Raises:
        DistillError: a file is missing or damaged, or lacks a weight of the network.
    """
    loaded: dict[str, Any] = {}
    parts = (
        [] if single_file is None else [name for name in single_file.parts if name in components]
    )
    for name in dict.fromkeys([*parts, *components]):  # what may not fit the folder comes first
        component_class, place = class_of(folder / name, *components[name]), folder / name
        try:
            with _quiet():
                if single_file is not None and name in parts:
                    loaded[name] = single_file.load(name, component_class, place, dtype)
                elif issubclass(component_class, nn.Module):
                    loaded[name] = _load_network(component_class, place, dtype)
                else:
                    loaded[name] = _load(component_class, place)
        except DistillError:
            raise
        except Exception as error:  # each of the libraries below raises its own kinds
            raise DistillError(f"{place} cannot be loaded: {first_line(error)}") from error
    for name, part in loaded.items():
        if name == "vae" and part.config.get("shift_factor", 0.0) is None:
            part.register_to_config(shift_factor=0.0)  # the pipelines add it as it is
        # Without tokenizer_config.json a CLIP's length is known to its encoder alone.
        if isinstance(part, CLIPTokenizer) and part.model_max_length > 1 << 30:
            encoder = loaded[name.replace("tokenizer", "text_encoder")]
            part.model_max_length = encoder.config.max_position_embeddings
    return loaded


def load_shapes(path_or_name: str, components: Components) -> dict[str, Any]:
    """Every component, networks on the meta device: from configuration files, without weights.

    Raises:
        DistillError: a file is missing or damaged.
    """
    loaded = {}
    for name, entry in components.items():
        try:
            with _quiet():
                loaded[name] = _shape(path_or_name, name, *entry)
        except DistillError:
            raise
        except Exception as error:  # each of the libraries below raises its own kinds
            raise DistillError(
                f"{path_or_name}: {name} cannot be read: {first_line(error)}"
            ) from error
    return loaded


def _shape(path_or_name: str, name: str, library: str, class_name: str) -> Any:
    component_class = class_of(Path(path_or_name) / name, library, class_name)
    if not issubclass(component_class, nn.Module):
        return _load(component_class, path_or_name, subfolder=name)
    with torch.device("meta"):
        if library == "transformers":
            config = component_class.config_class.from_pretrained(path_or_name, subfolder=name)
            return component_class(config)
        return component_class.from_config(
            component_class.load_config(path_or_name, subfolder=name)
        )


def _load(component_class: Any, place: Path | str, **where: str) -> Any:
    if issubclass(component_class, ProcessorMixin):
        return PictureProcessor(AutoImageProcessor.from_pretrained(place, backend="pil", **where))
    return component_class.from_pretrained(place, **where)


def weight_files(place: Path) -> list[Path]:
    """A component's safetensors files, those of the variant that is loaded."""
    middle = f".{variant}" if (variant := _variant(place)) else ""
    name = re.compile(
        rf"(model|diffusion_pytorch_model){middle}(-\d{{5}}-of-\d{{5}})?\.safetensors"
    )
    return [path for path in sorted(place.glob("*.safetensors")) if name.fullmatch(path.name)]


def _stored_dtype(place: Path) -> torch.dtype:
    """Of the first weights, float32 where none can be seen: loaded in it they stay in the file."""
    for path in weight_files(place):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if (dtype := file.get_tensor(name).dtype).is_floating_point:
                    return cast(torch.dtype, dtype)
    return torch.float32


def _load_network(network_class: Any, place: Path, dtype: torch.dtype | None) -> nn.Module:
    dtype = dtype or _stored_dtype(place)
    # transformers puts shapes that differ into a report; diffusers says them in its error.
    options = (
        {"ignore_mismatched_sizes": True} if issubclass(network_class, PreTrainedModel) else {}
    )
    network: nn.Module
    network, info = network_class.from_pretrained(
        place, dtype=dtype, output_loading_info=True, variant=_variant(place), **options
    )
    other_shapes = [key for key, *_ in info["mismatched_keys"]]
    if missing := sorted([*info["missing_keys"], *other_shapes]):
        raise DistillError(
            f"{place}: weight {missing[0]} (the first of {len(missing)}) is missing from its files "
            "or has another shape than config.json says"
        )
    # transformers leaves out what an encoder does not need of a whole model.
    if not options and (unexpected := sorted(info["unexpected_keys"])):
        raise DistillError(
            f"{place}: weight {unexpected[0]} (the first of {len(unexpected)}) has no place in the "
            "network; config.json says another network than the one that was saved"
        )
    return network


def _variant(place: Path) -> str | None:
    """``fp16`` where a component has only weights of that variant: ``model.fp16.safetensors``."""
    plain = re.compile(r"(model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.safetensors")
    other = re.compile(r"(?:model|diffusion_pytorch_model)\.(\w+)(-\d{5}-of-\d{5})?\.safetensors")
    names = [path.name for path in sorted(place.glob("*.safetensors"))]
    if any(map(plain.fullmatch, names)):
        return None
    return next((match[1] for match in map(other.fullmatch, names) if match), None)


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def class_of(place: Path, library: str, name: str) -> Any:
    """The class that ``model_index.json`` names for a component's folder.

    Raises:
        DistillError: neither diffusers nor transformers has it.
    """
    found = None
    if library in ("diffusers", "transformers"):
        found = getattr(importlib.import_module(library), name, None)
    if found is None:
        raise DistillError(
            f"{place}: model_index.json names the class {library}.{name}, which is not known here; "
            "expected one of diffusers or transformers"
        )
    return found


def unknown_keys(part: Any) -> list[str]:
    """What a component's configuration says that its class in diffusers knows nothing of."""
    known = inspect.signature(type(part).__init__).parameters
    return sorted(key for key in part.config if not key.startswith("_") and key not in known)


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DistillError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DistillError(f"{path} holds no JSON: {first_line(error)}") from error
    if not isinstance(config, dict) or not config:
        raise DistillError(f"{path} must hold a JSON object with the network's configuration")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' reports of what they missed and made up; the error says it."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [logging.get_verbosity() for logging in libraries]
    for logging in libraries:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        for logging, verbosity in zip(libraries, before, strict=True):
            logging.set_verbosity(verbosity)
