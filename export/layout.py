"""What kind of folder a student is, and what in it cannot be exported: said without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import ExportError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_LORA_KEY = re.compile(r"\.lora_(A|B|up|down)\.|\.lora\.(up|down)\.|lora_unet_")
_PICKLES = ("*.bin", "*.pt", "*.ckpt")


def check_student(student: Path, based: bool) -> None:
    """That there is a student at this path, or may be one on the hub.

    Args:
        student: a pipeline's folder or hub name; with a base also a transformer or a LoRA.
        based: whether a base is given, whose other components are taken.

    Raises:
        ExportError: nothing is there, or what is there cannot be exported; says why.
    """
    if not student.exists():
        if _HUB_NAME.fullmatch(str(student)):
            return
        raise ExportError(f"{student} does not exist; expected a diffusers folder or a hub name")
    if is_lora(student) or is_transformer(student):
        if not based:
            kind = "a LoRA" if is_lora(student) else "a transformer"
            raise ExportError(
                f"{student} is {kind} without a pipeline; give the pipeline it belongs to by --base"
            )
        if is_transformer(student):
            _check_component(student, "a transformer")
    elif student.is_file():
        raise ExportError(
            f"{student} is a single-file checkpoint; write a folder of it with diffusers: "
            "StableDiffusion3Pipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    elif based:
        raise ExportError(f"{student} is a whole pipeline; leave --base out")


def check_pipeline(folder: Path, loras: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The contents of a pipeline's ``model_index.json``; every component has what it needs.

    Raises:
        ExportError: no diffusers folder, or a file in it that would be left out or not be read.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ExportError(f"{folder} is not a diffusers folder: it has no model_index.json")
    try:
        index = dict(json.loads(path.read_text(encoding="utf-8")))
        components = [key for key, entry in index.items() if isinstance(entry, list) and entry[1]]
    except (ValueError, TypeError, IndexError) as error:
        raise ExportError(f"{path} is not the index of a diffusers pipeline: {error}") from error
    if isinstance(name := index.get("_class_name"), list):
        raise ExportError(
            f"{path}: _class_name is {name}, a pipeline with code of its own, which is not run; "
            "expected the name of a diffusers pipeline"
        )
    lora = next((each for each in map(folder.joinpath, _LORA_FILES) if each.is_file()), None)
    if lora is not None and lora.resolve() not in [each.resolve() for each in loras]:
        raise ExportError(f"{lora} would be left out; merge it by --lora {lora}, or move it away")
    for component in [*components, "transformer"]:
        if (folder / component).is_dir():
            _check_component(folder / component, f"the {component}")
    return index


def is_transformer(path: Path) -> bool:
    """Whether it is the folder of a transformer alone."""
    return path.is_dir() and "Transformer" in str(_json(path / "config.json").get("_class_name"))


def is_lora(path: Path) -> bool:
    """Whether it is a LoRA: a file of such weights, or a folder of nothing else."""
    return lora_file(path) is not None and not (path / "model_index.json").exists()


def lora_file(path: Path) -> Path | None:
    """The weights of a LoRA's folder or file."""
    if path.is_file() and path.suffix == ".safetensors":
        return path if any(map(_LORA_KEY.search, keys(path))) else None
    return next((each for each in map(path.joinpath, _LORA_FILES) if each.is_file()), None)


def _check_component(place: Path, what: str) -> None:
    if (place / "adapter_config.json").exists():
        raise ExportError(
            f"{place} holds a peft adapter, which would be left out; merge it by "
            f"--lora {place / _LORA_FILES[1]} and move it away"
        )
    if quantized := _json(place / "config.json").get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ExportError(
            f"{place} is quantized by {method}; expected plain weights: dequantize() and save it"
        )
    weights = sorted(place.glob("*.safetensors"))
    pickles = sorted(each for pattern in _PICKLES for each in place.glob(pattern))
    if pickles and not weights:
        single = pickles[0].with_suffix(".safetensors").name.replace("pytorch_model", "model")
        raise ExportError(
            f'{pickles[0]} is a pickle, which is not loaded; convert it: python -c "import torch; '
            "from safetensors.torch import save_file; save_file({k: v.clone() for k, v in "
            f"torch.load('{pickles[0]}', weights_only=True).items()}}, '{place / single}', "
            "{'format': 'pt'})\""
        )
    for index in sorted(place.glob("*.safetensors.index*.json")):
        for name in sorted(set(_json(index).get("weight_map", {}).values())):
            if not (place / name).exists():
                raise ExportError(f"{place / name} is missing, which {index.name} lists")
    shards = [each for each in weights if re.search(r"-\d{5}-of-\d{5}\.", each.name)]
    if len(shards) == len(weights) and shards and not any(place.glob("*.safetensors.index*.json")):
        raise ExportError(
            f"{shards[0]} is one of several shards, but their .safetensors.index.json is missing"
        )
    for path in weights:
        if wrapped := next((key for key in keys(path) if ".base_layer." in key), None):
            raise ExportError(
                f"{path}: weight {wrapped} is wrapped by peft; merge and save again: "
                f"pipeline.fuse_lora(), pipeline.unload_lora_weights(), save_pretrained() ({what})"
            )


def keys(path: Path) -> Iterator[str]:
    """The names of the weights in a safetensors file, from its header.

    Raises:
        ExportError: it is none.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise ExportError(f"{path} is a pointer of Git LFS, not the file: run `git lfs pull`")
        length = int.from_bytes(head, "little")
        try:
            header = json.loads(file.read(length if length < 1 << 28 else 0))
        except ValueError as error:
            raise ExportError(f"{path} is no safetensors file, or a part of one") from error
    return iter(key for key in header if key != "__metadata__")


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, which loading names."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return contents if isinstance(contents, dict) else {}
