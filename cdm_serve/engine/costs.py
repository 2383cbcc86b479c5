"""What the stages cost on this machine, measured at start, and the batches that follow from it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdm_serve.engine.pipeline import Pipeline

# Of two batch sizes that make about as much in a second, the smaller one: it answers sooner.
WORTH = 0.95
# Nobody sees the difference between executions that are shorter than this.
INSTANT = 0.01
ROUNDS = 3
# Models faster than this are measured, and thereby warmed up, at every batch size.
SMALL_SECONDS = 0.1

Seconds = dict[int, float]


def best_batch(seconds: Seconds, count: int) -> int:
    """The measured batch size, at most ``count``, that makes the most samples in a second.

    Of sizes within 5 % of the best it is the smallest; below 10 ms an execution costs nothing.
    """
    rates = {
        batch: batch / max(spent, INSTANT) for batch, spent in seconds.items() if batch <= count
    }
    enough = WORTH * max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= enough)


@dataclass(frozen=True)
class Costs:
    """Seconds of one execution: of the text encoder, and by size of a step and of a decoding."""

    text: Seconds
    step: dict[str, Seconds]
    decode: dict[str, Seconds]

    def to_json(self) -> dict[str, Any]:
        """The ``costs`` of a description."""
        sizes = {
            size: {
                "step": {str(batch): spent for batch, spent in steps.items()},
                "decode": {str(batch): spent for batch, spent in self.decode[size].items()},
                "batch": best_batch(steps, max(steps)),
            }
            for size, steps in self.step.items()
        }
        return {"text": self.text[1], **sizes}


def measure(pipeline: Pipeline, most: int, budget: float) -> Costs:
    """Run every graph at the batches it will be asked for, which also warms it up.

    ``budget`` is in seconds and for each graph and size: when it is spent, larger batches are not
    tried and will not be used. Neither is a batch in which a picture would not be the same, to the
    bit, as alone.
    """
    (condition,) = pipeline.encode(["warm up"])

    def text(batch: int) -> list[Any]:
        conditions = pipeline.encode(["warm up"] * batch)
        return [
            np.concatenate([pipeline.to_host(array).ravel() for array in condition.embeds.values()])
            for condition in conditions
        ]

    step: dict[str, Seconds] = {}
    decode: dict[str, Seconds] = {}
    for size in pipeline.manifest.sizes:
        noise = pipeline.noise(0, size)

        def velocity(batch: int, noise: Any = noise) -> Any:
            sigma = np.ones(batch, np.float32)
            latents = pipeline.stack([noise] * batch)
            return pipeline.to_host(pipeline.velocity(latents, sigma, [condition] * batch))

        def pixels(batch: int, noise: Any = noise) -> Any:
            return pipeline.decode(pipeline.stack([noise] * batch))

        step[size] = _sweep(velocity, most, budget)
        decode[size] = _sweep(pixels, most, budget)
    return Costs(_sweep(text, most, budget), step, decode)


def _sweep(run: Callable[[int], Any], most: int, budget: float) -> Seconds:
    """Seconds by batch: doubling, then those between 1 and the best, if the model is small."""
    end = time.perf_counter() + budget
    alone = run(1)[0]
    seconds: Seconds = {}

    def try_out(batches: list[int]) -> None:
        """The shortest of some rounds, so that a busy moment does not speak against one batch."""
        for _ in range(ROUNDS):
            for batch in batches:
                if seconds and time.perf_counter() > end:
                    return
                begin = time.perf_counter()
                rows = run(batch)
                spent = time.perf_counter() - begin
                if all(np.array_equal(row, alone) for row in rows):
                    seconds[batch] = min(spent, seconds.get(batch, spent))

    try_out([2**k for k in range(most.bit_length()) if 2**k <= most])
    best = best_batch(seconds, most)
    if seconds[1] < SMALL_SECONDS:
        try_out([batch for batch in range(3, best) if batch not in seconds])
    return {batch: spent for batch, spent in sorted(seconds.items()) if batch <= best}
