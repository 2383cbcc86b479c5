"""Which work runs next, and on how much of the machine: the one place that decides it.

Pure: everything that matters is an argument. The rules:

- Prompts before pictures that come in, before decodings, before steps: all but the last are short,
  and let a batch grow or a picture leave. Within a stage the lowest rank comes first, and with it
  others of its picture size.
- Work is shared: with several lanes each takes no more than its part of what is there, so that all
  have batches of one size, and a lane with nothing to do finds something when the next one ends.
  What is short is not kept for a lane that is busy with something else.
- Whatever is there alone gets the whole machine.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cdm_serve.engine.costs import Curve, best_batch
from cdm_serve.engine.sample import Sample

TEXT, PICTURE, DECODE, STEP = STAGES = ("text", "picture", "decode", "step")


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


def choose(
    waiting: Mapping[str, list[Work]],
    running: Iterable[Task],
    lanes: int,
    curve: Callable[[str, str], Curve],
    *,
    overlaps: bool,
) -> Task | None:
    """The next task beside those ``running``; None: nothing, or nothing before one of them ends.

    Args:
        waiting: by stage, in any order.
        running: what has begun and not ended.
        lanes: parts of the machine that graphs may run on side by side.
        curve: what a stage's executions take, for a picture size.
        overlaps: where there are no lanes, whether stages may run at once all the same.
    """
    running = list(running)
    free = [lane for lane in range(lanes) if all(task.lane != lane for task in running)]
    whole = any(task.lane is None for task in running)
    for stage in STAGES:
        beside = [task for task in running if task.stage == stage]
        works = _next_works(stage, waiting[stage], beside)
        if not works:
            continue
        size = "" if stage == TEXT else works[0].sample.job.size
        seconds = curve(stage, size)
        if not seconds.narrow and overlaps:
            if beside:
                continue
        elif running and (whole or not free or not seconds.narrow):
            return None
        only = not running and len(works) == sum(map(len, waiting.values()))
        if not seconds.narrow or (only and _better_wide(seconds, len(works))):
            return Task(stage, size, works[: best_batch(seconds.wide, len(works))], None)
        begun = sum(len(task.works) for task in beside if task.size == size)
        sharing = lanes if stage == STEP else len(free) + len(beside)
        share = -(-(len(works) + begun) // sharing)
        batch = best_batch(seconds.narrow, min(share, len(works)))
        return Task(stage, size, works[:batch], free[0])
    return None


def _next_works(stage: str, works: list[Work], beside: list[Task]) -> list[Work]:
    """The first by rank, and what can be done with it.

    A sample's previews and its picture stay in order: none is decoded before an earlier one is.
    """
    busy = {work.sample for task in beside for work in task.works}
    works = [work for work in works if work.sample not in busy]
    works.sort(key=lambda work: work.sample.rank)
    if stage == TEXT:
        return works
    return [work for work in works if work.sample.job.size == works[0].sample.job.size]


def _better_wide(seconds: Curve, count: int) -> bool:
    """Whether so many samples, and nothing else, are made sooner one after another by all."""
    wide = best_batch(seconds.wide, count)
    narrow = best_batch(seconds.narrow, -(-count // seconds.lanes))
    used = min(seconds.lanes, -(-count // narrow))
    return seconds.wide[wide] / wide <= seconds.narrow[narrow] / (used * narrow)
