"""Which models are in a repository, and whether one was replaced."""

from pathlib import Path

from cdm_serve.repository import model_folders

Stamp = tuple[int, int]


def inventory(repository: Path) -> dict[str, Stamp]:
    """A stamp of each model, which changes when the model is exported again."""
    stamps = {}
    for folder in model_folders(repository):
        try:
            stat = (folder / "1" / "export.json").stat()
        except OSError:  # replaced at this moment, or not an export
            continue
        stamps[folder.name] = (stat.st_ino, stat.st_mtime_ns)
    return stamps
