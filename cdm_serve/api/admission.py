"""Takes in as much work as can be done in time, and no more.

What a picture costs is known before it is made: its steps and its decoding, in the seconds that the
engine measures at start and corrects by what executions take. So the line in front of the engine is
bounded in seconds and not in requests, and what is said about waiting holds. Where the machine's
speed changes too much to foresee, the line is kept shorter.
"""

import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from cdm_serve.api.errors import ApiError, too_many

# About so many of the latest seconds of work tell how fast the engine is, or so many pictures where
# those are longer.
MEMORY_SECONDS = 2.0
MEMORY_PICTURES = 10
# The engine's own measurement counts like so many seconds of evidence.
PRIOR = 0.25
# The engine is fast as it can be with so many pictures in line, or with so much of the line full:
# with less it waits for work, and not the work for the engine.
CROWD = 8
FULL = 0.25
# Waiting so many times as long as foreseen is a promise kept, and all but so many must be.
TOLERANCE = 1.2
BROKEN = 0.005
# How quickly the margin of the promises follows.
CAUTION = 0.002


@dataclass(frozen=True)
class PictureCost:
    """Seconds of the engine for one picture: among others, in full batches; and by itself."""

    shared: float
    alone: float

    @classmethod
    def of(
        cls,
        costs: dict[str, Any],
        size: str,
        steps: int,
        partials: int,
        decoder: str = "full",
        *,
        incoming: bool = False,
    ) -> "PictureCost":
        """``costs`` are those of a model's card; ``incoming``: a picture is encoded for it."""
        of_size = _of_size(costs, size)
        full = of_size["decode"]
        tiny = of_size.get("tiny_decode", full)
        last = tiny if decoder == "tiny" else full
        stages = [(1, costs["text"]), (steps, of_size["step"]), (partials, tiny), (1, last)]
        if incoming:
            stages.append((1, of_size["picture"]))
        return cls(
            shared=sum(times * _best(seconds) for times, seconds in stages),
            alone=sum(times * seconds["alone"] for times, seconds in stages),
        )


def longest_end(costs: dict[str, Any], size: str) -> float:
    """Seconds of a step and a decoding in the largest batches: what a deadline does not stop."""
    of_size = _of_size(costs, size)
    step, decode = of_size["step"], of_size["decode"]
    return float(max(step.values()) + max(decode.values()))


def _of_size(costs: dict[str, Any], size: str) -> dict[str, Any]:
    """As the engine has it or, before it has made one, as it will estimate it: by the pixels."""
    if size in costs:
        return dict(costs[size])
    pixels = {each: _pixels(each) for each in (size, *costs) if each != "text"}
    wanted = pixels.pop(size)
    nearest = min(pixels, key=lambda each: abs(pixels[each] - wanted))
    factor = wanted / pixels[nearest]
    return {
        stage: {batch: factor * spent for batch, spent in seconds.items()}
        for stage, seconds in costs[nearest].items()
        if stage != "batch"
    }


def _pixels(size: str) -> int:
    width, height = map(int, size.split("x"))
    return width * height


def _best(seconds: dict[str, float]) -> float:
    """Of one sample in the batch that makes most."""
    return min(spent / int(batch) for batch, spent in seconds.items() if batch != "alone")


class Pace:
    """Wall seconds per second of work; above 1 when other programs use the machine too."""

    def __init__(self) -> None:
        self._seconds = PRIOR
        self._work = PRIOR
        self._last: float | None = None

    @property
    def seconds_per_work(self) -> float:
        """1.0 until there is evidence."""
        return self._seconds / self._work

    def begun(self) -> None:
        """The engine, which had nothing to do, has now."""
        self._last = time.monotonic()

    def finished(self, work: float) -> None:
        """A picture was finished."""
        now = time.monotonic()
        if self._last is not None:
            keep = math.exp(-work / max(MEMORY_SECONDS, MEMORY_PICTURES * work))
            self._seconds = keep * self._seconds + (now - self._last)
            self._work = keep * self._work + work
        self._last = now

    def interrupted(self) -> None:
        """The time until the next picture says nothing: there was no crowd, or no engine."""
        self._last = None


class Margin:
    """By how much too short waits are foreseen: all but a share ``BROKEN`` take no longer.

    A quantile, followed in small steps: up by much when it was exceeded, down by little otherwise.
    """

    def __init__(self) -> None:
        self._late = TOLERANCE

    @property
    def factor(self) -> float:
        """What to multiply a foreseen wait by, so that the promise is kept; 1.0 or more."""
        return self._late / TOLERANCE

    def observe(self, foreseen: float, waited: float) -> None:
        """Seconds of somebody's wait."""
        step = 1 - BROKEN if waited > self._late * foreseen else -BROKEN
        self._late = max(TOLERANCE, self._late + CAUTION * step)


class Ticket:
    """The place of one request in the line; leaving it gives up what was not made."""

    def __init__(self, admission: "Admission", pictures: int, cost: PictureCost) -> None:
        self._admission = admission
        self._left = pictures
        self._work = cost.shared
        self._alone = cost.alone
        self._before = admission.pictures + admission.ended
        self._begun = time.monotonic()
        admission.add(pictures, pictures * self._work)
        # Short waits say little: they are mostly of what runs already.
        full = admission.wait >= FULL * admission.queue_seconds
        self._foreseen = admission.wait if full else None

    @property
    def ahead(self) -> int:
        """About how many pictures come before these: those that were, less all that ended since."""
        return max(0, self._before - self._admission.ended)

    def picture_done(self) -> None:
        """One picture less to make."""
        self._left -= 1
        self._admission.finish(self._work)
        if not self._left and self._foreseen is not None:
            waited = time.monotonic() - self._begun - self._alone
            self._admission.margin.observe(self._foreseen, waited)

    def interrupted(self) -> None:
        """The engine was lost, and with it the time."""
        self._foreseen = None
        self._admission.pace.interrupted()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the rest; may be called again."""
        self._admission.add(-self._left, -self._left * self._work)
        self._left = 0


class Admission:
    """The line in front of the engine, at most ``queue_seconds`` long. For one event loop."""

    def __init__(self, queue_seconds: float) -> None:
        self.queue_seconds = queue_seconds
        self.pictures = 0
        self.ended = 0
        self.pace = Pace()
        self.margin = Margin()
        self._work = 0.0
        self._promised = 0.0

    @property
    def wait(self) -> float:
        """Seconds until all that was taken in is made."""
        return self._work * self.pace.seconds_per_work

    def admit(self, cost: PictureCost, pictures: int, allowed: float | None) -> Ticket:
        """A place in the line; ``allowed`` is how many seconds the client waits, if it says so.

        Raises:
            ApiError: the line is full, or the pictures would come too late.
        """
        pace = self.pace.seconds_per_work
        work = pictures * cost.shared
        # One request is always taken in when nobody else is there, however large it is.
        room = self.queue_seconds / self.margin.factor
        if not self._work:
            room = max(room, work * pace)
        over = self.wait + work * pace - room
        if over > 0:
            seconds = self._promise(over, work * pace)
            raise too_many(
                f"the line is full: {self.wait:.1f} s of work wait; try again in {seconds:.1f} s",
                seconds,
                "queue_full",
            )
        needed = max(cost.alone, work) * max(1.0, pace)
        if allowed is not None and needed > allowed:
            raise ApiError(
                f"this takes {needed:.2f} s even without waiting, and the request allows "
                f"{allowed:g} s: ask for fewer steps or images, or allow more time",
                # What clients know as a timeout; but the same would happen again.
                status=408,
                code="deadline_too_short",
                headers={"x-should-retry": "false"},
            )
        late = 0.0 if allowed is None else self.wait + needed - allowed
        if late > 0:
            raise too_many(
                f"with {self.wait:.1f} s of work before it, this would come {late:.1f} s too late",
                late,
                "deadline_cannot_be_met",
            )
        return Ticket(self, pictures, cost)

    def _promise(self, over: float, cost: float) -> float:
        """Seconds after which to come back: behind those who were told so before.

        All at once they would find room for one. Some never come, so it is not more than one full
        line later than room for this request alone.
        """
        now = time.monotonic()
        turn = min(max(now + over, self._promised), now + over + self.queue_seconds)
        self._promised = turn + cost
        return turn - now

    def add(self, pictures: int, work: float) -> None:
        """Count pictures in, or out when they are given up."""
        if not self.pictures:
            self.pace.begun()
        self.pictures += pictures
        self.ended += max(0, -pictures)
        # Sums of fractions do not return to zero by themselves.
        self._work = max(0.0, self._work + work) if self.pictures else 0.0
        if self.pictures < CROWD and self.wait < FULL * self.queue_seconds:
            self.pace.interrupted()

    def finish(self, work: float) -> None:
        """Count one picture out that was made, and learn from when it was."""
        self.pace.finished(work)
        self.add(-1, -work)
