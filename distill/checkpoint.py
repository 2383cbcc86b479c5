"""Checkpoints: a folder each, whole or absent; the newest few and the best are kept.

They are written with ``torch.distributed.checkpoint``: every process writes its own part, and a run
may go on with another number of processes.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from distill.errors import DistillError
from distill.files import whole_file
from distill.parallel import Processes

_RUN = "run.json"
_BEST = "best.json"


class Resumable(Protocol):
    """A training whose next update depends on its state alone."""

    processes: Processes
    updates: int

    @property
    def identity(self) -> dict[str, Any]:
        """What a continuation must have in common with this run, as JSON has it."""

    def state_dict(self) -> dict[str, Any]:
        """Its own tensors, and numbers; all of it in nested dictionaries."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""


def save(folder: Path, trainer: Resumable, keep: int, best: bool = False) -> Path:
    """Write ``checkpoint-<updates>`` and drop all but the ``keep`` newest and the best.

    Every process of the training calls this.

    Args:
        folder: the run's.
        trainer: whose state is written.
        keep: at least 1.
        best: whether this is now the best checkpoint of the run.

    Raises:
        DistillError: it cannot be written; nothing half-written stays and none was dropped.
    """
    processes = trainer.processes
    path = folder / f"checkpoint-{trainer.updates:08d}"
    temporary = folder / f".{path.name}.tmp"
    with processes.together(), _written(path, temporary):
        if processes.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    with _written(path, temporary), _quietly():
        state_dict_saver.save(
            trainer.state_dict(), checkpoint_id=temporary, process_group=processes.host
        )
    with processes.together(), _written(path, temporary):
        if processes.main:
            (temporary / _RUN).write_text(json.dumps(trainer.identity), encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            if best:
                with whole_file(folder / _BEST) as pointer:
                    pointer.write_text(json.dumps({"checkpoint": path.name}), encoding="utf-8")
            for old in found(folder)[:-keep]:
                if old != best_of(folder):
                    shutil.rmtree(old)
    return path


@contextmanager
def _written(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DistillError(f"checkpoint {path} cannot be written: {_reason(error)}") from error


def found(folder: Path) -> list[Path]:
    """The folder's checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*"))


def best_of(folder: Path) -> Path | None:
    """The best checkpoint by evaluation, if any was."""
    try:
        pointer = json.loads((folder / _BEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return folder / str(pointer["checkpoint"])


def load(path: Path, trainer: Resumable) -> None:
    """Bring a training of the same identity to where a checkpoint was.

    Raises:
        DistillError: damaged, or from a run that this one does not continue.
    """
    try:
        then = json.loads((path / _RUN).read_text(encoding="utf-8"))
        different = [key for key, now in trainer.identity.items() if then.get(key) != now]
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    if different:
        key, now = different[0], trainer.identity[different[0]]
        raise DistillError(
            f"{key} was {then.get(key)!r} in {path} and is now {now!r}: start a new --run folder"
        )
    state: dict[str, Any] = trainer.state_dict()
    try:
        with _quietly():
            state_dict_loader.load(state, checkpoint_id=path, process_group=trainer.processes.host)
    except (Exception, CheckpointException) as error:  # whatever the damage leads to
        raise _damaged(path, error) from error
    trainer.load_state_dict(state)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warning that there is one process, and its logged tracebacks of an error."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _damaged(path: Path, error: BaseException) -> DistillError:
    return DistillError(f"checkpoint {path} is damaged: {_reason(error)}; delete it")


def _reason(error: BaseException) -> str:
    """What lies behind an error, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return (str(error).strip() or type(error).__name__).splitlines()[0]
