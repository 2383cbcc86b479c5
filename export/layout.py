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
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_PLAIN = "take the .safetensors file in bf16 or fp16"
_QUANTIZED = re.compile(r"(^|\.)(scaled_fp8|scale_weight|weight_scale|absmax|qweight)(\.|$)")


def check_student(student: Path, based: bool) -> None:
    """That there is a student at this path, or may be one on the hub.

    Args:
        student: a pipeline's folder or hub name; with a base also a transformer, a single-file
            checkpoint or a LoRA.
        based: whether a base is given, whose other components are taken.

    Raises:
        ExportError: nothing is there, or what is there cannot be exported; says why.
    """
    if not student.exists():
        if _HUB_NAME.fullmatch(str(student)) and student.suffix != ".safetensors":
            return
        raise ExportError(f"{student} does not exist; expected a diffusers folder or a hub name")
    if student.is_file() or is_lora(student) or is_transformer(student):
        kind = "a transformer"
        if is_lora(student):
            kind = "a LoRA"
        elif student.is_file():
            kind = "a single-file checkpoint"
            _check_single_file(student)
        if not based:
            raise ExportError(
                f"{student} is {kind} without a pipeline; give the pipeline it belongs to by --base"
            )
        if is_transformer(student):
            _check_component(student, "a transformer")
    elif is_transformer(inner := student / "transformer") and not _is_pipeline(student):
        raise ExportError(f"{student} has no pipeline but a transformer; give {inner} and --base")
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


def check_decoder(folder: Path) -> None:
    """That there is a tiny decoder at this path, or may be one on the hub.

    Raises:
        ExportError: there is something else, or nothing.
    """
    if not folder.exists():
        if _HUB_NAME.fullmatch(str(folder)):
            return
        raise ExportError(
            f"--decoder {folder} does not exist; expected the folder or hub name of an "
            "AutoencoderTiny, such as madebyollin/taesd3"
        )
    found = _json(folder / "config.json").get("_class_name")
    if found != "AutoencoderTiny":
        what = (
            f"of class {found}"
            if found
            else "no network of diffusers: it has no readable config.json"
        )
        raise ExportError(f"--decoder {folder} is {what}; expected an AutoencoderTiny")
    _check_component(folder, "the tiny decoder")


def is_transformer(path: Path) -> bool:
    """Whether it is the folder of a transformer alone."""
    return path.is_dir() and "Transformer" in str(_json(path / "config.json").get("_class_name"))


def _is_pipeline(path: Path) -> bool:
    return (path / "model_index.json").exists()


def is_single_file(path: Path) -> bool:
    """Whether it is a checkpoint in one file."""
    return path.is_file() and not is_lora(path)


def is_lora(path: Path) -> bool:
    """Whether it is a LoRA: a file of such weights, or a folder of nothing else."""
    return lora_file(path) is not None and not _is_pipeline(path)


def lora_file(path: Path) -> Path | None:
    """The weights of a LoRA's folder or file."""
    if path.is_file() and path.suffix == ".safetensors":
        return path if any(map(_LORA_KEY.search, keys(path))) else None
    return next((each for each in map(path.joinpath, _LORA_FILES) if each.is_file()), None)


def _check_single_file(path: Path) -> None:
    if path.suffix in _PICKLE_SUFFIXES:
        raise ExportError(_pickled(path, path.with_suffix(".safetensors")))
    if path.suffix == ".gguf":
        raise ExportError(f"{path} is quantized, as GGUF is; {_PLAIN}")
    if path.suffix != ".safetensors":
        raise ExportError(
            f"{path} is no safetensors file; expected a diffusers folder, a hub name, or a single "
            ".safetensors file with --base"
        )
    names = list(keys(path))
    if found := next(filter(_QUANTIZED.search, names), None):
        raise ExportError(f"{path} is quantized (weight {found}), which is not read; {_PLAIN}")
    if any("input_blocks." in name for name in names):
        raise ExportError(
            f"{path} is a Stable Diffusion 1, 2 or XL, which predicts noise; this package takes "
            "flow matching by Euler steps"
        )


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
    pickles = [each for each in sorted(place.glob("*")) if each.suffix in _PICKLE_SUFFIXES]
    if pickles and not weights:
        single = pickles[0].with_suffix(".safetensors").name.replace("pytorch_model", "model")
        raise ExportError(_pickled(pickles[0], place / single))
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


def _pickled(path: Path, wanted: Path) -> str:
    return (
        f'{path} is a pickle, which is not loaded; convert it: python -c "import torch; '
        "from safetensors.torch import save_file; save_file({k: v.clone() for k, v in "
        f"torch.load('{path}', weights_only=True).items()}}, '{wanted}', {{'format': 'pt'}})\""
    )


def keys(path: Path) -> Iterator[str]:
    """The names of the weights in a safetensors file.

    Raises:
        ExportError: it is none.
    """
    return iter(header(path))


def header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its weights by name: ``shape``, ``dtype``, where they are.

    Raises:
        ExportError: it is none.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise ExportError(f"{path} is a pointer of Git LFS, not the file: run `git lfs pull`")
        length = int.from_bytes(head, "little")
        try:
            found = dict(json.loads(file.read(length if length < 1 << 28 else 0)))
            found.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in found.values()), default=0)
        except (ValueError, TypeError, LookupError) as error:
            raise ExportError(f"{path} is no safetensors file, or a part of one") from error
        if path.stat().st_size < len(head) + length + end:
            raise ExportError(f"{path} is a part of a safetensors file: its end is missing")
    return found


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, which loading names."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return contents if isinstance(contents, dict) else {}
