"""``cdm-bench distill``: what a student update costs, ours against the released layout.

Forwards are counted on a shallow network of the teacher's class, over many updates; time is taken
on the teacher itself, one update of each form in turn. Both forms see the same draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, quantiles, stdev
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.training.counting import Units
from benchmarks.training.released import ReleasedTrainer
from distill.adapters import Adapter, load_adapter
from distill.parallel import Processes
from distill.prompts import PromptStream, read_prompts
from distill.recipe import Recipe
from distill.trainer import Trainer

# One narrow block: what is counted does not depend on the network's size.
_SHALLOW = {
    "num_layers": 1,
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "caption_projection_dim": 16,
}
_WARM_UP = 1


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and mean of the updates measured, and the standard error of the mean."""

    median: float
    low: float
    high: float
    mean: float
    error: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """Of at least two values."""
        low, median, high = quantiles(values, n=4, method="inclusive")
        mean, error = fmean(values), stdev(values) / math.sqrt(len(values))
        return Spread(*(round(value, 4) for value in (median, low, high, mean, error)))


@dataclass(frozen=True)
class UpdateCost:
    """Units a sample and student update; seconds a student update; released over ours, paired."""

    device: str
    threads: int
    batch: int
    n_max: int
    counted_updates: int
    timed_pairs: int
    units_ours: Spread
    units_released: Spread
    seconds_ours: Spread
    seconds_released: Spread
    faster: Spread
    faster_overall: float


def measure(recipe: Recipe, counted: int, pairs: int, on_update: Callable[[], None]) -> UpdateCost:
    """Count and time; ``on_update`` is called after each of ``2 * (counted + pairs)`` updates.

    Args:
        recipe: with all three losses and no accumulation.
        counted: updates counted of each form, at least 2.
        pairs: updates timed of each form, at least 2.
        on_update: for a progress bar.

    Raises:
        BenchError: the recipe is another method than the one that was released.
        DistillError: it cannot be trained at all.
    """
    _refuse_other_methods(recipe)
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    units = {form: _count(form, recipe, counted, on_update) for form in (Trainer, ReleasedTrainer)}
    ours, released = _time(recipe, pairs, on_update)
    device = Processes(recipe.runtime.device).device
    return UpdateCost(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        batch=recipe.batch,
        n_max=recipe.schedule.n_max,
        counted_updates=counted,
        timed_pairs=pairs,
        units_ours=Spread.of(units[Trainer]),
        units_released=Spread.of(units[ReleasedTrainer]),
        seconds_ours=Spread.of(ours),
        seconds_released=Spread.of(released),
        faster=Spread.of([b / a for a, b in zip(ours, released, strict=True)]),
        faster_overall=round(sum(released) / sum(ours), 4),
    )


def _count(
    form: type[Trainer], recipe: Recipe, updates: int, on_update: Callable[[], None]
) -> list[float]:
    """Units of each update, for one sample of the batch; activations are recomputed."""
    adapter = load_adapter(recipe.teacher, max_sequence_length=recipe.max_sequence_length)
    whole: Any = adapter.transformer
    adapter.pipeline.transformer = type(whole).from_config({**whole.config, **_SHALLOW})
    runtime = replace(recipe.runtime, gradient_checkpointing=True, compile=False)
    trainer = _trainer(form, adapter, replace(recipe, runtime=runtime))
    units = Units([trainer.student, trainer.fake, adapter.transformer])
    counts = []
    for _ in range(updates):
        before = units.total
        trainer.update()
        counts.append((units.total - before) / recipe.batch)
        on_update()
    return counts


def _time(
    recipe: Recipe, pairs: int, on_update: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Seconds of each update of ours and of the released form, which take turns."""
    adapter = load_adapter(recipe.teacher, max_sequence_length=recipe.max_sequence_length)
    trainers = [_trainer(form, adapter, recipe) for form in (Trainer, ReleasedTrainer)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(_WARM_UP + pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            took = _seconds(trainers[which])
            if pair >= _WARM_UP:
                seconds[which].append(took)
                on_update()
    return seconds


def _seconds(trainer: Trainer) -> float:
    def wait() -> None:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    wait()
    started = time.perf_counter()
    trainer.update()
    wait()
    return time.perf_counter() - started


def _trainer(form: type[Trainer], adapter: Adapter, recipe: Recipe) -> Trainer:
    processes = Processes(recipe.runtime.device)
    prompts = PromptStream(
        adapter,
        read_prompts(recipe.prompts),
        recipe.seed,
        recipe.runtime.prompts_in_memory,
        processes.device,
    )
    return form(adapter, recipe, prompts, prompts.encode([""]), processes)


def _refuse_other_methods(recipe: Recipe) -> None:
    loss = recipe.loss
    if not loss.ca == loss.dm == loss.cdm == 1:
        raise BenchError("the released form has CA, DM and CDM of weight 1")
    if recipe.runtime.accumulate != 1:
        raise BenchError("the released form does not accumulate: set runtime.accumulate=1")
