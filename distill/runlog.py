"""``log.jsonl``: one JSON object a line, consistent with the checkpoint a run continues from."""

from __future__ import annotations

import json
from pathlib import Path

from distill.errors import DistillError
from distill.files import whole_file


class RunLog:
    """The log of a run's folder.

    Args:
        folder: the run's.
        updates: lines about later updates are dropped; the run makes these again.

    Raises:
        DistillError: the folder or the file cannot be written.
    """

    def __init__(self, folder: Path, updates: int) -> None:
        self.path = folder / "log.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        with whole_file(self.path) as temporary:
            kept = [line for line in lines if _update_of(line) <= updates]
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def append(self, record: dict[str, float]) -> None:
        """Add a line; ``record`` holds at least ``update``."""
        try:
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise DistillError(f"{self.path} cannot be written: {error}") from error


def _update_of(line: str) -> float:
    """The update a line is about; infinity for one that a kill cut short."""
    try:
        return float(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
