"""The model repository on disk, looked at before Triton is started on it."""

import re
from pathlib import Path

from cdm_serve.engine.manifest import Manifest, read_manifest
from cdm_serve.errors import StartError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EXPORT_COMMAND = "cdm-export STUDENT --to onnx --out"


def check_repository(folder: Path, *, full: bool = False) -> list[Manifest]:
    """The exported models in ``folder``, all their files checked as ``read_manifest`` does.

    Raises:
        StartError: there is no folder, no model in it, or an export that does not hold together.
    """
    if not folder.is_dir():
        raise StartError(
            f"model repository {folder} does not exist: run `{EXPORT_COMMAND} {folder}`, or name "
            "another folder with --model-repository"
        )
    models = model_folders(folder)
    if not models:
        raise StartError(f"{folder} holds no model: run `{EXPORT_COMMAND} {folder}`")
    for model in models:
        if not NAME.fullmatch(model.name):
            raise StartError(
                f"{model} has a name that Triton cannot load: rename the folder to letters, "
                "digits, '.', '_' and '-'"
            )
    return [read_manifest(model / "1", full=full) for model in models]


def model_folders(repository: Path) -> list[Path]:
    """The models by name, without the exporter's unfinished folders, which begin with a dot."""
    return sorted(path.parent for path in repository.glob("[!.]*/config.pbtxt"))
