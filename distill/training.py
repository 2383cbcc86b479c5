"""The training loop around the trainer: log, previews, evaluation, checkpoints, when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from distill import checkpoint
from distill.errors import DistillError
from distill.evaluation import Evaluation
from distill.log import RunLog
from distill.preview import FixedSamples, pictures_of
from distill.trainer import Trainer

Report = Callable[[dict[str, float]], None]


def train(
    trainer: Trainer, folder: Path, log: RunLog, report: Report, stop: Callable[[], bool]
) -> None:
    """Update until the recipe's count, or until ``stop``; then leave a checkpoint.

    Every process of the training calls this.

    Args:
        trainer: fresh, or with a checkpoint's state.
        folder: for checkpoints and the teacher's samples.
        log: receives a record every ``log_every`` updates, evaluations and previews.
        report: called with every logged record.
        stop: asked before the first update and after each, alike in all processes.

    Raises:
        DistillError: a loss or gradient is no longer finite, the student's pictures have collapsed,
            or a file cannot be written. What is wrong never reaches a checkpoint.
    """
    _Loop(trainer, folder, log, report).run(stop)


class _Loop:
    def __init__(self, trainer: Trainer, folder: Path, log: RunLog, report: Report) -> None:
        self.trainer, self.folder, self.log, self.report = trainer, folder, log, report
        self.recipe = trainer.recipe
        self.window: list[dict[str, Tensor]] = []
        self.best = log.least("distance")
        plan = self.recipe.log
        self.preview = FixedSamples(trainer, plan.preview_pictures) if plan.preview_every else None
        self.evaluation = Evaluation(trainer, folder) if self.recipe.evaluation.every else None
        if self.evaluation and not trainer.updates:
            self._show("teacher", self.evaluation.teacher_pictures())
            expected = {f"teacher_{name}": x for name, x in self.evaluation.expected.items()}
            start, _ = self.evaluation.student()
            self._note({**start, **expected}, "evaluation")
        self.clock = time.perf_counter()

    def run(self, stop: Callable[[], bool]) -> None:
        recipe = self.recipe
        ends = self.trainer.updates >= recipe.updates or stop()
        while not ends:
            self.window.append(self.trainer.update())
            done = self.trainer.updates
            finished = done == recipe.updates
            logs = _every(recipe.log.log_every, done)
            ends = finished or stop()
            evaluates = self.evaluation and (finished or _every(recipe.evaluation.every, done))
            previews = _every(recipe.log.preview_every, done)
            saves = ends or _every(recipe.log.checkpoint_every, done)
            if logs or evaluates or previews or saves:
                # Only here does the host wait for the device.
                self._log_window()
                better = bool(evaluates) and self._evaluate()
                if previews:
                    self._preview()
                if saves or better:
                    checkpoint.save(self.folder, self.trainer, recipe.log.keep, best=better)
                self.clock = time.perf_counter()

    def _note(self, record: dict[str, float], group: str) -> None:
        record = {"update": self.trainer.updates, **record}
        with self.trainer.processes.together():
            self.log.append(record, group)
        self.report(record)

    def _show(self, name: str, pictures: Tensor) -> None:
        with self.trainer.processes.together():
            self.log.pictures(name, pictures, self.trainer.updates)

    def _log_window(self) -> None:
        """Each metric's mean over the updates since the last record, and all processes."""
        names = list(self.window[0])
        rows = torch.stack([torch.stack([m[name] for name in names]) for m in self.window])
        values = self.trainer.processes.mean(rows.float()).cpu()
        seconds = time.perf_counter() - self.clock
        first = self.trainer.updates - len(self.window) + 1
        for update, row in enumerate(values.tolist(), start=first):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    there = checkpoint.found(self.folder)
                    good = there[-1] if there else None
                    raise _gone_wrong(f"update {update}: {name} is {value}", good)
        means = dict(zip(names, values.mean(0).tolist(), strict=True))
        samples = len(self.window) * self.recipe.fake_updates * self.recipe.batch
        self._note({**means, "samples_per_second": round(samples / seconds, 3)}, "training")
        self.window = []

    def _evaluate(self) -> bool:
        """Whether the student is better than ever before."""
        assert self.evaluation is not None
        record, wrong = self.evaluation.student()
        # All processes stop, or none; they have the same pictures, but for rounding.
        if self.trainer.processes.any(wrong is not None):
            # Checkpoints since the last evaluation may hold what has just been seen.
            good = checkpoint.best_of(self.folder)
            raise _gone_wrong(
                f"update {self.trainer.updates}: the student collapsed: {wrong}", good
            )
        self._note(record, "evaluation")
        better = record["distance"] < self.best
        self.best = min(self.best, record["distance"])
        return better

    def _preview(self) -> None:
        assert self.preview is not None
        for steps in sorted({1, 2, self.recipe.steps, 2 * self.recipe.steps}):
            self._show(f"preview-{steps}", pictures_of(self.trainer, self.preview.student(steps)))


def _gone_wrong(what: str, good: Path | None) -> DistillError:
    if good is None or not good.exists():
        how = "no good checkpoint yet: start again with"
    else:
        how = f"the last good checkpoint is {good}: delete any later one and --resume with"
    return DistillError(
        f"{what}; training stopped; {how} lower learning rates "
        "(--set optimiser.student_rate=...), or start a new --run with a lower loss.alpha"
    )


def _every(interval: int, done: int) -> bool:
    return interval > 0 and done % interval == 0
