"""SHA-256 of files and of a whole student."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Hex digest of a text's UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def combined_sha256(digests: list[str]) -> str:
    """Hex digest of the given hex digests, concatenated in order."""
    return text_sha256("".join(digests))


def folder_sha256(folder: Path) -> str:
    """Hex digest of a diffusers folder: ``cdm.json``, the index and every component's files.

    A component's files count with their path, so moving one changes the digest; whatever else
    lies in the folder (a licence, pictures, the other formats of a hub download) does not count.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    paths = [folder / "cdm.json", folder / "model_index.json"]
    for component in sorted(index):
        paths += sorted((folder / component).rglob("*"))
    digests = []
    for path in paths:
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            digests += [text_sha256(relative), file_sha256(path)]
    return combined_sha256(digests)
