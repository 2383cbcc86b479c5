"""``cdm-bench distill``: what a student update costs, ours against the released layout.

Forwards are counted on a shallow network of the teacher's class, over many updates; time is taken
on the teacher itself, one update of each form in turn. Both forms see the same draws.

One sample through one forward is one unit, wherever it happens: a recomputation in the backward
pass counts like any other forward, and the rest of a backward pass counts as two. A trained pass
thus costs three units, or four where activations are recomputed.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import fmean, quantiles, stdev
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.errors import BenchError
from benchmarks.training.released import ReleasedTrainer
from distill.adapters import load_adapter
from distill.distillation import trainer_of
from distill.networks import blocks
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


class Units:
    """Counts from now on for networks that share nothing; ``total`` is the units so far."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.total = 0
        for network in networks:
            # The first block, not the network: it is what runs again when activations are.
            blocks(network)[0].register_forward_pre_hook(self._forward, with_kwargs=True)
            network.register_forward_hook(self._output)

    def _forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.total += len(tensors[0])

    def _output(self, _: nn.Module, args: tuple[Any, ...], output: tuple[Tensor]) -> None:
        if output[0].requires_grad:
            output[0].register_hook(self._backward)  # type: ignore[no-untyped-call]  # torch's

    def _backward(self, gradient: Tensor) -> None:
        self.total += 2 * len(gradient)


def measure(
    recipe: Recipe, counted: int, pairs: int, on_update: Callable[[], None]
) -> dict[str, Any]:
    """Count and time; ``on_update`` is called after each of ``2 * (counted + pairs)`` updates.

    Args:
        recipe: with all three losses and no accumulation.
        counted: updates counted of each form, at least 2.
        pairs: updates timed of each form, at least 2.
        on_update: for a progress bar.

    Returns:
        The ``quartiles`` of units a sample and student update, and of seconds a student update, of
        both forms; and of the released form's seconds over ours, pair by pair.

    Raises:
        BenchError: the recipe is another method than the one that was released.
        DistillError: it cannot be trained at all.
    """
    if not recipe.loss.ca == recipe.loss.dm == recipe.loss.cdm == 1:
        raise BenchError("the released form has CA, DM and CDM of weight 1")
    if recipe.runtime.accumulate != 1:
        raise BenchError("the released form does not accumulate: set runtime.accumulate=1")
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    ours, released = (
        _count(form, recipe, counted, on_update) for form in (Trainer, ReleasedTrainer)
    )
    fast, slow = _time(recipe, pairs, on_update)
    return {
        "threads": torch.get_num_threads(),
        "batch": recipe.batch,
        "n_max": recipe.schedule.n_max,
        "counted_updates": counted,
        "timed_pairs": pairs,
        "units_ours": quartiles(ours),
        "units_released": quartiles(released),
        "seconds_ours": quartiles(fast),
        "seconds_released": quartiles(slow),
        "faster": quartiles([b / a for a, b in zip(fast, slow, strict=True)]),
        "faster_overall": round(sum(slow) / sum(fast), 4),
    }


def quartiles(values: list[float]) -> dict[str, float]:
    """Median, quartiles and mean of at least two values, and the standard error of the mean."""
    low, median, high = quantiles(values, n=4, method="inclusive")
    found = {"median": median, "low": low, "high": high, "mean": fmean(values)}
    found["error"] = stdev(values) / math.sqrt(len(values))
    return {name: round(value, 4) for name, value in found.items()}


def _count(
    form: type[Trainer], recipe: Recipe, updates: int, on_update: Callable[[], None]
) -> list[float]:
    """Units of each update, for one sample of the batch; activations are recomputed."""
    adapter = load_adapter(recipe.teacher, max_sequence_length=recipe.max_sequence_length)
    whole: Any = adapter.transformer
    adapter.pipeline.transformer = type(whole).from_config({**whole.config, **_SHALLOW})
    runtime = replace(recipe.runtime, gradient_checkpointing=True, compile=False)
    recipe, processes = replace(recipe, runtime=runtime), Processes(recipe.runtime.device)
    held = recipe.runtime.prompts_in_memory
    prompts = PromptStream(adapter, read_prompts(recipe.prompts), recipe.seed, held, processes)
    trainer = form(adapter, recipe, prompts, prompts.encode([""]), processes)
    units = Units([trainer.student, trainer.fake.transformer, trainer.teacher])
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
    processes = Processes(recipe.runtime.device)
    trainers = [trainer_of(recipe, processes, form) for form in (Trainer, ReleasedTrainer)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(_WARM_UP + pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            took = update_seconds(trainers[which])
            if pair >= _WARM_UP:
                seconds[which].append(took)
                on_update()
    return seconds


def update_seconds(trainer: Trainer) -> float:
    """One update, with what the GPU still has to do of it."""

    def wait() -> None:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    wait()
    started = time.perf_counter()
    trainer.update()
    wait()
    return time.perf_counter() - started
