"""A distillation from its recipe to the student's folder."""

from __future__ import annotations

import signal
import time
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

_SAME_SIGNAL = 2.0  # seconds


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
    try:
        return _distil(recipe, folder, resume, console, processes, form)
    except torch.OutOfMemoryError as error:
        console.quiet = False  # the others are elsewhere, and their launcher only ends them
        raise DistillError(
            f"process {processes.rank} has no memory left on {processes.device} "
            f"({str(error).partition('. ')[0]}): raise runtime.accumulate above "
            f"{recipe.runtime.accumulate}, set runtime.gradient_checkpointing = true, shard the "
            "networks or train with lora.rank; --dry-run counts what each takes"
        ) from error


def _distil(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    console: Console,
    processes: Processes,
    form: type[Trainer],
) -> int:
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

    progress = TrainingProgress(console, recipe.updates, trainer.updates)
    with _Stop(console) as stop, progress:
        train(trainer, folder, log, progress.report, lambda: processes.any(stop.asked))
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


class _Stop:
    """Turns Ctrl-C and SIGTERM into a request; another one seconds later ends the process at once.

    Not sooner: a launcher passes a terminal's Ctrl-C on to processes that have had it already.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._since: float | None = None

    def __enter__(self) -> _Stop:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        return self._since is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._console.print("stopping after this update; a second signal ends it at once")
        elif time.monotonic() - self._since > _SAME_SIGNAL:
            self._console.show_cursor()  # which the progress bar hides
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
