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
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from distill.errors import DistillError
from distill.files import whole_file

if TYPE_CHECKING:
    from distill.trainer import Trainer

# What may differ between a run and its continuation; anything else would change its meaning.
_MAY_CHANGE = ("updates", "output", "optimiser", "log", "evaluation", "runtime")
_RUN = "run.json"
_BEST = "best.json"


def save(folder: Path, trainer: Trainer, keep: int, best: bool = False) -> Path:
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
    try:
        if processes.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        processes.wait()
        with _quietly():
            state_dict_saver.save(trainer.state_dict(), checkpoint_id=temporary)
        if processes.main:
            (temporary / _RUN).write_text(json.dumps(trainer.identity), encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
    except (OSError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DistillError(f"checkpoint {path} cannot be written: {_reason(error)}") from error
    if processes.main:
        if best:
            with whole_file(folder / _BEST) as pointer:
                pointer.write_text(json.dumps({"checkpoint": path.name}), encoding="utf-8")
        for old in found(folder)[:-keep]:
            if old != best_of(folder):
                shutil.rmtree(old)
    processes.wait()
    return path


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


def load(path: Path, trainer: Trainer) -> None:
    """Bring a trainer of the same recipe and prompts to where a checkpoint was.

    Raises:
        DistillError: damaged, or from a run that this recipe does not continue.
    """
    try:
        then = json.loads((path / _RUN).read_text(encoding="utf-8"))
        recipe, prompts = then["recipe"], then["prompts"]
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    if prompts != trainer.identity["prompts"]:
        raise DistillError(f"the prompts are not those of {path}; start a new --run folder")
    for key, value in trainer.identity["recipe"].items():
        if key not in _MAY_CHANGE and recipe.get(key) != value:
            raise DistillError(
                f"recipe key {key} was {recipe.get(key)!r} in {path} and is now {value!r}; only "
                f"{', '.join(_MAY_CHANGE)} may change: start a new --run folder"
            )
    state: dict[str, Any] = trainer.state_dict()
    try:
        with _quietly():
            state_dict_loader.load(state, checkpoint_id=path)
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
