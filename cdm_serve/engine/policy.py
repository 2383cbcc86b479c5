"""Which work runs next, and on how much of the machine: the one place that decides it.

Pure: everything that matters is an argument. The rules:

- Prompts before pictures that come in, before decodings, before steps: all but the last are short,
  and let a batch grow or a picture leave. Within a stage the lowest rank comes first, and with it
  others of its picture size that the same graph makes.
- Work is shared: with several lanes each takes no more than its part of what is there, so that all
  have batches of one size, and a lane with nothing to do finds something when the next one ends.
  What is short is not kept for a lane that is busy with something else.
- Whatever is there alone gets the whole machine.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cdm_serve.engine.costs import Curve, best_batch
from cdm_serve.engine.sample import Sample

TEXT, PICTURE, TINY, DECODE, STEP = STAGES = ("text", "picture", "tiny_decode", "decode", "step")
# Each decoder has batches of its own.
DECODINGS = {"tiny": TINY, "full": DECODE}


class Work(Protocol):
    """Something done for a sample."""

    @property
    def sample(self) -> Sample:
        """For whom."""


@dataclass(frozen=True, eq=False)
class Task:
    """One execution of a stage's graph; without a ``lane`` with the whole machine."""

    stage: str
    size: str
    works: list[Work]
    lane: int | None
    begun: float = field(default_factory=time.perf_counter)


def choose(
    waiting: Mapping[str, list[Work]],
    running: Iterable[Task],
    lanes: int,
    curve: Callable[[str, Sample], Curve],
    graph: Callable[[str, Sample], Hashable],
    *,
    overlaps: bool,
) -> Task | None:
    """The next task beside those ``running``; None: nothing, or nothing before one of them ends.

    Args:
        waiting: by stage, in any order.
        running: what has begun and not ended.
        lanes: parts of the machine that graphs may run on side by side.
        curve: what a stage's executions take that are such as a sample needs.
        graph: which one a stage of a sample is run in.
        overlaps: where there are no lanes, whether stages may run at once all the same.
    """
    running = list(running)
    free = [lane for lane in range(lanes) if all(task.lane != lane for task in running)]
    whole = any(task.lane is None for task in running)
    for stage in STAGES:
        beside = [task for task in running if task.stage == stage]
        works = _next_works(stage, waiting, running, graph)
        if not works:
            continue
        size = _size(stage, works[0].sample)
        seconds = curve(stage, works[0].sample)
        if not seconds.narrow and overlaps:
            if beside:
                continue
        elif running and (whole or not free or not seconds.narrow):
            return None
        only = not running and len(works) == sum(map(len, waiting.values()))
        if not seconds.narrow or (only and _better_wide(seconds, len(works))):
            return Task(stage, size, works[: best_batch(seconds.wide, len(works))], None)
        begun = sum(
            len(task.works)
            for task in beside
            if task.size == size
            and graph(stage, task.works[0].sample) == graph(stage, works[0].sample)
        )
        sharing = lanes if stage == STEP else len(free) + len(beside)
        share = -(-(len(works) + begun) // sharing)
        batch = best_batch(seconds.narrow, min(share, len(works)))
        return Task(stage, size, works[:batch], free[0])
    return None


def _size(stage: str, sample: Sample) -> str:
    """Of the pictures that a batch may be for; prompts have none."""
    return "" if stage == TEXT else sample.job.size


def _next_works(
    stage: str,
    waiting: Mapping[str, list[Work]],
    running: list[Task],
    graph: Callable[[str, Sample], Hashable],
) -> list[Work]:
    """The first by rank, and what can be done with it.

    A sample's previews and its picture stay in order, whichever decoder is to make them: none is
    decoded before an earlier one is.
    """
    stages = DECODINGS.values() if stage in DECODINGS.values() else [stage]
    busy = {work.sample for task in running if task.stage in stages for work in task.works}
    if stage == DECODE:
        busy |= {work.sample for work in waiting[TINY]}
    works = [work for work in waiting[stage] if work.sample not in busy]
    works.sort(key=lambda work: work.sample.rank)
    if not works:
        return works
    size, same = _size(stage, works[0].sample), graph(stage, works[0].sample)
    return [
        work
        for work in works
        if _size(stage, work.sample) == size and graph(stage, work.sample) == same
    ]


def _better_wide(seconds: Curve, count: int) -> bool:
    """Whether so many samples, and nothing else, are made sooner one after another by all."""
    wide = best_batch(seconds.wide, count)
    narrow = best_batch(seconds.narrow, -(-count // seconds.lanes))
    used = min(seconds.lanes, -(-count // narrow))
    return seconds.wide[wide] / wide <= seconds.narrow[narrow] / (used * narrow)
