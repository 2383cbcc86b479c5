"""A job on its way through the stages."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cdm_serve.engine.job import EngineError, Job, Partial, Picture
from cdm_serve.engine.pipeline import Condition, Floats
from cdm_serve.engine.runtimes.runtime import Array

Answer = Callable[[Partial | Picture | EngineError], None]


def partial_steps(steps: int, partials: int) -> list[int]:
    """After how many steps the partial images are made: evenly spread, never after the last."""
    count = min(partials, steps - 1)
    return [(index + 1) * steps // (count + 1) for index in range(count)]


@dataclass(frozen=True, eq=False)
class Known:
    """What an inpainted sample is given back after each step, where ``free`` is 0 and not 1.

    Arrays are (1, C, h, w); ``free`` and ``rest``, which is 1 where it is 0, are (1, 1, h, w).
    """

    picture: Array
    noise: Array
    free: Array
    rest: Array


@dataclass(eq=False)
class Sample:
    """``latents`` at ``sigmas[step]``, on their way to the end of ``sigmas``.

    ``rank`` orders samples: the lower is next. ``owner`` is the scheduler that took the job in.
    ``answer`` is called from several threads, never twice at once and never again after a picture
    or an error.
    """

    job: Job
    answer: Answer
    sigmas: Floats
    rank: float
    owner: Any
    step: int = field(init=False)
    over: bool = False
    cancelled: bool = False
    latents: Array = field(init=False)
    known: Known | None = None
    condition: Condition = field(init=False)
    batches: list[int] = field(default_factory=list)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    arrived: float = field(default_factory=time.perf_counter)
    arrived_unix: float = field(default_factory=time.time)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.step = self.job.start

    @property
    def sample(self) -> "Sample":
        """Itself, as a ``Frame`` has it."""
        return self

    @property
    def steps_left(self) -> int:
        """Steps still to be made."""
        return self.job.steps - self.step

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.job.deadline is not None and time.time() > self.job.deadline

    def send(self, answer: Partial | Picture | EngineError) -> bool:
        """Answer, unless the last answer was given already; returns whether it was sent."""
        with self._lock:
            if self.over:
                return False
            self.over = not isinstance(answer, Partial)
            self.answer(answer)
            return True

    def record(self, stage: str, begin: float, end: float) -> None:
        """Times are those of ``perf_counter``."""
        self.spans.append((stage, 1e3 * (begin - self.arrived), 1e3 * (end - begin)))

    def report(self) -> dict[str, Any]:
        """As ``Picture`` has it."""
        sums: dict[str, float] = {}
        for stage, _, milliseconds in self.spans:
            sums[stage] = sums.get(stage, 0.0) + milliseconds
        return {
            "batches": self.batches,
            "tokens": self.condition.tokens,
            "arrived": self.arrived_unix,
            "spans": [(stage, round(at, 3), round(spent, 3)) for stage, at, spent in self.spans],
            "milliseconds": {stage: round(spent, 3) for stage, spent in sums.items()},
        }


@dataclass(frozen=True, eq=False)
class Frame:
    """Latents to be decoded: a sample's last, or the partial image of this ``index``."""

    sample: Sample
    latents: Array
    step: int
    index: int | None
