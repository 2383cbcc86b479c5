"""``cdm-bench distill --ablation``: the method's parts, each trained alike and judged.

Every variant sees the same number of updates of the same batch, and every student draws the same
held-out captions from the same seeds at each number of steps. What is finished in the folder is not
done again.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.record import write_whole
from benchmarks.training.variants import TRAINERS, VARIANTS
from distill import checkpoint
from distill.adapters import load_adapter
from distill.demo.emoji.compose import Composition
from distill.demo.emoji.judge import JudgeNetwork, load_judge
from distill.demo.emoji.score import held_out, sample_all, score_pictures
from distill.demo.emoji.vocabulary import SUBJECTS
from distill.distillation import distil
from distill.recipe import Recipe, read_recipe
from distill.trainer import Trainer

STEPS = (1, 2, 3, 4, 8)
TEACHER, UNTRAINED = "teacher", "untrained"
TEACHER_STEPS, GUIDANCE = 28, 3.5  # of the teacher's own pictures
# A student that collapses is a result here, and what is compared is the last one, not the best.
_UNWATCHED = ("evaluation.every=0", "log.preview_every=0")
_SEED = 1_000_000  # of the pictures' noise; far from the seeds of a training


@dataclass(frozen=True)
class Ablation:
    """What is compared and how; a folder holds the results of one of these.

    Args:
        recipe: of the whole method.
        overrides: of every variant: the budget.
        pictures: held-out captions, each drawn once at each number of steps.
    """

    recipe: Path
    overrides: tuple[str, ...]
    pictures: int

    def settings(self) -> dict[str, Any]:
        """What results must have in common, as JSON has it."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return settings


def run_ablation(
    ablation: Ablation, names: Sequence[str], folder: Path, console: Console
) -> dict[str, Any] | None:
    """Train and judge what is missing in ``folder``; None if interrupted.

    Returns:
        ``settings`` and ``results``: by name the overrides, the seconds of training in
        this run and the scores by number of steps; the teacher's and the untrained student's first.

    Raises:
        BenchError: a folder of other settings.
        DistillError: anything the user can mend.
    """
    # Before the first training: mistakes in a recipe or a missing judge need no hours.
    recipes = {name: _recipe(ablation, name, folder) for name in names}
    plain = read_recipe(ablation.recipe, list(ablation.overrides))
    judge, compositions = load_judge(), held_out(ablation.pictures, len(SUBJECTS))
    _claim(folder, ablation)

    def scores(pipeline: Any, steps: int, guidance: float = 1.0) -> Any:
        return _scores(pipeline, judge, compositions, steps, guidance)

    def teacher() -> dict[str, Any]:
        found = scores(_load(plain.teacher), TEACHER_STEPS, GUIDANCE)
        return {"steps": {str(TEACHER_STEPS): found}}

    def untrained() -> dict[str, Any]:
        pipeline = _load(plain.teacher)
        return {"steps": {str(steps): scores(pipeline, steps) for steps in STEPS}}

    results = {
        TEACHER: _once(folder / f"{TEACHER}.json", teacher),
        UNTRAINED: _once(folder / f"{UNTRAINED}.json", untrained),
    }
    for name, recipe in recipes.items():
        run = _run_folder(folder, name)

        def variant(name: str = name, recipe: Recipe = recipe, run: Path = run) -> Any:
            console.rule(name)
            started = time.perf_counter()
            form = TRAINERS.get(name, Trainer)
            if not Path(recipe.output).exists() and distil(recipe, run, True, console, form):
                return None
            seconds = time.perf_counter() - started
            for old in checkpoint.found(run):  # half a gigabyte each, and the student is there
                shutil.rmtree(old)
            pipeline = _load(recipe.output)
            return {
                "overrides": VARIANTS[name],
                "training_seconds": round(seconds, 1),
                "steps": {str(steps): scores(pipeline, steps) for steps in STEPS},
            }

        result = _once(run / "scores.json", variant)
        if result is None:
            return None
        results[name] = result
    return {"settings": ablation.settings(), "results": results}


def accuracy(scores: dict[str, Any]) -> float:
    """The mean over the questions that were asked, from 0 to 1."""
    rates = [answer["rate"] for answer in scores["accuracy"].values()]
    return fmean(rate for rate in rates if rate is not None)


def _recipe(ablation: Ablation, name: str, folder: Path) -> Recipe:
    output = f"output={_run_folder(folder, name) / 'student'}"
    overrides = [*ablation.overrides, *_UNWATCHED, *VARIANTS[name], output]
    return read_recipe(ablation.recipe, overrides)


def _run_folder(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "-")


def _claim(folder: Path, ablation: Ablation) -> None:
    """Remember the settings, or refuse those of another ablation."""
    path = folder / "settings.json"
    if path.exists():
        then = json.loads(path.read_text(encoding="utf-8"))
        for key, value in ablation.settings().items():
            if then[key] != value:
                raise BenchError(
                    f"{folder} holds results with {key} {then[key]}, not {value}; "
                    "name another --folder"
                )
    write_whole(path, json.dumps(ablation.settings(), indent=2) + "\n")


def _once(path: Path, make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """The result in a file, made if it is not there; None is not kept."""
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    result = make()
    if result is not None:
        write_whole(path, json.dumps(result, indent=2) + "\n")
    return result


def _scores(
    pipeline: Any,
    judge: JudgeNetwork,
    compositions: Sequence[Composition],
    steps: int,
    guidance: float,
) -> dict[str, Any]:
    pictures = sample_all(pipeline, compositions, steps, guidance, _SEED)
    scores = score_pictures(pictures, compositions, judge)
    return {**scores, "brightness": round(float(pictures.mean()), 4)}


def _load(path_or_name: str) -> Any:
    pipeline = load_adapter(path_or_name, max_sequence_length=0).pipeline
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
