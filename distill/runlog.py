"""What a run leaves for a person: ``log.jsonl``, picture grids, TensorBoard's event files.

All of it is consistent with the checkpoint that a run continues from.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from torch import Tensor

from distill.errors import DistillError
from distill.files import whole_file
from distill.pictures import save_grid
from distill.tensorboard import TensorBoard


class RunLog:
    """The log of a run's folder.

    Args:
        folder: the run's.
        updates: what is logged about later updates is dropped, the run makes it again; everything
            is if there were none.
        main: whether this process writes; the others' logs are silent.

    Raises:
        DistillError: the folder or a file cannot be written.
    """

    def __init__(self, folder: Path, updates: int, main: bool = True) -> None:
        self.folder, self.path, self.main = folder, folder / "log.jsonl", main
        self.records = [r for r in _records(self.path) if updates and r["update"] <= updates]
        if main:
            with whole_file(self.path) as temporary:
                lines = [json.dumps(record) + "\n" for record in self.records]
                temporary.write_text("".join(lines), encoding="utf-8")
            self.tensorboard = TensorBoard(folder, purge=updates + 1 if updates else 0)

    def append(self, record: dict[str, float], group: str = "training") -> None:
        """Add a line; ``record`` holds at least ``update``. TensorBoard has it under ``group``."""
        self.records.append(record)
        if not self.main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise DistillError(f"{self.path} cannot be written: {error}") from error
        self.tensorboard.scalars(group, record)

    def pictures(self, name: str, pictures: Tensor, update: int) -> None:
        """Write pictures (B, 3, H, W) in [0, 1] as ``<name>-<update>.png``, in a grid."""
        if self.main:
            save_grid(pictures, self.folder / f"{name}-{update:08d}.png")
            self.tensorboard.pictures(name, pictures, update)

    def least(self, name: str) -> float:
        """The smallest number of this name so far; infinity if there is none."""
        return min((r[name] for r in self.records if name in r), default=math.inf)


def _records(path: Path) -> list[dict[str, float]]:
    """The lines of a log, without any that a kill cut short."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"{path} cannot be read: {error}") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("update"), int | float):
            records.append(record)
    return records
