"""A distillation from its recipe to the student's folder."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path
from types import FrameType

import diffusers
import torch
import transformers
from rich.console import Console

from distill import checkpoint
from distill.adapters import load_adapter
from distill.adapters.components import weight_files
from distill.adapters.loading import pipeline_folder
from distill.errors import DistillError
from distill.files import StoredTensors, drop_unfinished
from distill.log import RunLog, TrainingProgress
from distill.parallel import Processes
from distill.prompts import PromptStream, read_prompts
from distill.recipe import Recipe
from distill.report import write_report
from distill.student import save_student
from distill.trainer import Trainer
from distill.training import train


def distil(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    console: Console,
    form: type[Trainer] = Trainer,
) -> int:
    """Train as the recipe says and write the student; 0, or 130 when interrupted before the end.

    ``form`` is the method; an ablation has another.

    Raises:
        DistillError: anything the user can mend.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    # Of RMSNorm, whose weights stay float32 under autocast: there is no fused kernel for that.
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    processes = Processes(recipe.runtime.device)
    if processes.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    console.quiet = not processes.main
    there = checkpoint.found(folder)
    if there and not resume:
        raise DistillError(
            f"{folder} holds checkpoints: continue with --resume, or name a new --run"
        )
    with processes.together():
        if processes.main:
            drop_unfinished(folder)
            drop_unfinished(Path(recipe.output).parent, f"{Path(recipe.output).name}.")
    trainer = trainer_of(recipe, processes, form)
    if there:
        checkpoint.load(there[-1], trainer)
        console.print(f"continuing from {there[-1]}", soft_wrap=True)
    with processes.together():
        log = RunLog(folder, trainer.updates, processes.main)

    interrupted = _Interrupt()
    with interrupted, TrainingProgress(console, recipe.updates, trainer.updates) as progress:

        def stop() -> bool:
            return processes.any(interrupted.asked())

        train(trainer, folder, log, progress.report, stop)
    if trainer.updates < recipe.updates:
        console.print(f"stopped after update {trainer.updates}; continue with --resume")
        return 130
    best = checkpoint.best_of(folder)
    if best:  # the student drifts where a run is too long: what is kept is what evaluates best
        checkpoint.load(best, trainer)
    output = save_student(trainer)
    with processes.together():
        if processes.main:
            report = write_report(folder, log.records, trainer.updates)
            console.print(f"report: {report}", soft_wrap=True)
    console.print(
        f"student after {trainer.updates} of {recipe.updates} updates: {output}", soft_wrap=True
    )
    return 0


def trainer_of(recipe: Recipe, processes: Processes, form: type[Trainer] = Trainer) -> Trainer:
    """A trainer whose host memory is what it reads and no more, with the recipe's prompts.

    Raises:
        DistillError: the teacher or the prompts cannot be read, or do not fit the recipe.
    """
    with processes.together():
        adapter = load_adapter(recipe.teacher, None, recipe.max_sequence_length)
        weights = StoredTensors(weight_files(pipeline_folder(recipe.teacher) / "transformer"))
        prompts = PromptStream(
            adapter,
            read_prompts(recipe.prompts),
            recipe.seed,
            recipe.runtime.prompts_in_memory,
            processes,
            recipe.batch,
        )
        null = prompts.encode([""])
    return form(adapter, recipe, prompts, null, processes, weights)


class _Interrupt:
    """Turns the first Ctrl-C into a request; the second one is Python's own."""

    def __enter__(self) -> None:
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def asked(self) -> bool:
        return self._asked

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._before)
