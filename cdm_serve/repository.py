"""The model repository on disk, looked at before Triton is started on it."""

import re
from pathlib import Path

from cdm_serve.engine.manifest import Manifest, read_manifest
from cdm_serve.errors import StartError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EXPORT_COMMAND = "cdm-export STUDENT --to onnx --out"


def check_repository(folder: Path) -> list[Manifest]:
    """The exported models in ``folder``, all of them checked.

    Raises:
        StartError: there is no folder, no model in it, or an export that does not hold together.
    """
    return [check_model(model) for model in models_in(folder)]


def models_in(folder: Path) -> list[Path]:
    """The models in ``folder``.

    Raises:
        StartError: there is no folder, or no model in it.
    """
    if not folder.is_dir():
        raise StartError(
            f"model repository {folder} does not exist: run `{EXPORT_COMMAND} {folder}`, or name "
            "another folder with --model-repository"
        )
    if not (models := model_folders(folder)):
        raise StartError(f"{folder} holds no model: run `{EXPORT_COMMAND} {folder}`")
    return models


def check_model(model: Path, *, full: bool = False) -> Manifest:
    """What a model folder holds, its files and its variants' checked as ``read_manifest`` does.

    Raises:
        StartError: Triton cannot load its name, or its export does not hold together.
    """
    if not NAME.fullmatch(model.name):
        raise StartError(
            f"{model} has a name that Triton cannot load: rename the folder to letters, "
            "digits, '.', '_' and '-'"
        )
    for variant in variants_of(model):
        read_manifest(variant / "1", full=full)
    return read_manifest(model / "1", full=full)


def variants_of(model: Path) -> list[Path]:
    """The models that are served in the same process, which loads once what they have in common.

    Raises:
        StartError: one has the name of a model of its own.
    """
    variants = model_folders(model / "variants")
    for variant in variants:
        if (model.parent / variant.name / "config.pbtxt").exists():
            raise StartError(
                f"{variant} has the name of another model, {model.parent / variant.name}: "
                "rename or remove one of the folders"
            )
    return variants


def parameters_of(model: Path) -> dict[str, str]:
    """The ``parameters`` in a model folder's ``config.pbtxt``."""
    entry = r'key:\s*"(\w+)"\s*value\s*\{\s*string_value:\s*"([^"]*)"'
    return dict(re.findall(entry, (model / "config.pbtxt").read_text(encoding="utf-8")))


def model_folders(repository: Path) -> list[Path]:
    """The models by name, without the exporter's unfinished folders, which begin with a dot."""
    return sorted(path.parent for path in repository.glob("[!.]*/config.pbtxt"))
