"""``cdm-distill``: a teacher and a recipe in, a few-step student out."""

from __future__ import annotations

import argparse
import hashlib
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

import diffusers
import torch
import transformers
from rich.console import Console

from distill import checkpoint
from distill.adapters import load_adapter
from distill.errors import DistillError
from distill.progress import TrainingProgress
from distill.prompts import encode_prompts, read_prompts
from distill.recipe import Recipe
from distill.recipe_file import read_recipe
from distill.runlog import RunLog
from distill.student import save_student
from distill.trainer import Trainer
from distill.training import train


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code is 2 when the user can mend what is wrong, 130 when stopped."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    _quiet_libraries()
    try:
        overrides = list(options.set)
        if options.updates is not None:
            overrides.append(f"updates={options.updates}")
        recipe = read_recipe(options.recipe, overrides)
        folder = options.run or Path("runs") / options.recipe.stem
        return distil(recipe, folder, options.resume, console)
    except DistillError as error:
        console.print(f"cdm-distill: error: {error}", style="red", soft_wrap=True, markup=False)
        return 2


def distil(recipe: Recipe, folder: Path, resume: bool, console: Console) -> int:
    """Train as the recipe says and write the student; 0, or 130 when interrupted before the end.

    Raises:
        DistillError: anything the user can mend.
    """
    there = checkpoint.found(folder)
    if there and not resume:
        raise DistillError(
            f"{folder} holds checkpoints: continue with --resume, or name a new --run"
        )
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    prompts = read_prompts(Path(recipe.prompts))
    prompts_hash = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    adapter = load_adapter(recipe.teacher, max_sequence_length=recipe.max_sequence_length)
    embeddings = encode_prompts(adapter, [*prompts, ""])
    trainer = Trainer(adapter, recipe, embeddings[: len(prompts)], embeddings[len(prompts) :])
    if there:
        trainer.load_state_dict(checkpoint.load(there[-1], asdict(recipe), prompts_hash))
        console.print(f"continuing from {there[-1]}", soft_wrap=True)
    log = RunLog(folder, trainer.updates)

    interrupted = _Interrupt()
    with interrupted, TrainingProgress(console, recipe.updates, trainer.updates) as progress:
        train(trainer, folder, prompts_hash, log, progress.report, interrupted.asked)
    if trainer.updates < recipe.updates:
        console.print(f"stopped after update {trainer.updates}; continue with --resume")
        return 130
    output = save_student(
        trainer.average, replace(recipe, updates=trainer.updates), trainer.updates
    )
    console.print(f"student after {trainer.updates} updates: {output}", soft_wrap=True)
    return 0


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdm-distill", description=__doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="checkpoints, log, previews (runs/<recipe>)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint, if any"
    )
    parser.add_argument("--updates", type=int, metavar="N", help="student updates of the whole run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a recipe key, such as loss.alpha=3",
    )
    return parser


def _quiet_libraries() -> None:
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
