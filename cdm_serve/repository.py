"""The model repository on disk, looked at before Triton is started on it."""

from pathlib import Path

from cdm_serve.engine.manifest import Manifest, read_manifest
from cdm_serve.errors import StartError

EXPORT_COMMAND = "cdm-export STUDENT --to onnx --out"


def check_repository(folder: Path) -> list[Manifest]:
    """The exported models in ``folder``, all their files checked.

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
    return [read_manifest(model / "1") for model in models]


def model_folders(repository: Path) -> list[Path]:
    """The models by name, without the exporter's unfinished folders, which begin with a dot."""
    return sorted(path.parent for path in repository.glob("[!.]*/config.pbtxt"))
