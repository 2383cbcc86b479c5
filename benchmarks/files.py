"""Results appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from benchmarks.errors import BenchError


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        BenchError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error}") from error
