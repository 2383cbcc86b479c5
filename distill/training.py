"""The training loop around the trainer: log, previews, checkpoints, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from distill import checkpoint
from distill.errors import DistillError
from distill.pictures import save_grid
from distill.preview import preview_pictures
from distill.runlog import RunLog
from distill.trainer import Trainer

Report = Callable[[dict[str, float]], None]


def train(
    trainer: Trainer,
    folder: Path,
    log: RunLog,
    report: Report,
    stop: Callable[[], bool],
) -> None:
    """Update until the recipe's count, or until ``stop``; then leave a checkpoint.

    Args:
        trainer: fresh, or with a checkpoint's state.
        folder: for checkpoints and previews.
        log: receives a record every ``log_every`` updates and one per preview.
        report: called with every logged record.
        stop: asked after every update.

    Raises:
        DistillError: a loss or gradient is no longer finite, or a file cannot be written.
    """
    recipe = trainer.recipe

    def note(record: dict[str, float]) -> None:
        log.append(record)
        report(record)

    def save() -> None:
        checkpoint.save(folder, trainer, recipe.log.keep)

    window: list[dict[str, Tensor]] = []
    started, saved_at = time.perf_counter(), trainer.updates
    while trainer.updates < recipe.updates and not stop():
        window.append(trainer.update())
        done = trainer.updates
        ends = done == recipe.updates or stop()
        saves = ends or _every(recipe.log.checkpoint_every, done)
        # The only points at which the host waits for the device.
        if saves or _every(recipe.log.log_every, done):
            means = _checked_means(window, done, folder)
            seconds = time.perf_counter() - started
            samples = len(window) * recipe.fake_updates * recipe.batch
            note({"update": done, **means, "samples_per_second": round(samples / seconds, 3)})
            window, started = [], time.perf_counter()
        if _every(recipe.log.preview_every, done):
            note({"update": done, **_preview(trainer, folder / f"preview-{done:08d}.png")})
            started = time.perf_counter()
        if saves:
            save()
            saved_at = done
            started = time.perf_counter()
    if saved_at != trainer.updates:
        save()


def _every(interval: int, done: int) -> bool:
    return interval > 0 and done % interval == 0


def _preview(trainer: Trainer, path: Path) -> dict[str, float]:
    pictures = preview_pictures(trainer)
    save_grid(pictures, path)
    return {"brightness": pictures.mean().item(), "contrast": pictures.std().item()}


def _checked_means(window: list[dict[str, Tensor]], done: int, folder: Path) -> dict[str, float]:
    """Each metric's mean over the updates since the last record."""
    names = list(window[0])
    rows = torch.stack([torch.stack([metrics[name] for name in names]) for metrics in window])
    values = rows.float().cpu()
    for update, row in enumerate(values.tolist(), start=done - len(window) + 1):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                last = checkpoint.found(folder)
                good = f"the last good checkpoint is {last[-1]}" if last else "no checkpoint yet"
                raise DistillError(
                    f"update {update}: {name} is {value}, training stopped; {good}; continue from "
                    "it with --resume and lower learning rates (--set optimiser.student_rate=...)"
                )
    return dict(zip(names, values.mean(0).tolist(), strict=True))
