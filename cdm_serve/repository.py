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
    # The exporter builds in folders that begin with a dot, which Triton would try to load.
    models = sorted(path.parent for path in folder.glob("[!.]*/config.pbtxt"))
    if not models:
        raise StartError(f"{folder} holds no model: run `{EXPORT_COMMAND} {folder}`")
    return [read_manifest(model / "1") for model in models]
