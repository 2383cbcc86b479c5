"""Takes in as much work as can be done in time, and no more.

What a picture costs is known before it is made: its steps and its decoding, in the seconds that the
engine measured at start. So the line in front of the engine is bounded in seconds and not in
requests, and what is said about waiting holds.
"""

import time
from types import TracebackType

from cdm_serve.api.errors import ApiError
from cdm_serve.api.limits import too_much
from cdm_serve.api.pace import CROWD, Pace
from cdm_serve.api.plan import Plan
from cdm_serve.engine.card import ModelCard


def picture_work(model: ModelCard, size: str, steps: int, partials: int) -> float:
    """Seconds of the engine that one picture takes among others, in full batches."""
    text, step, decode = _costs(model, size)
    return text + steps * _best(step) + (1 + partials) * _best(decode)


def picture_alone(model: ModelCard, size: str, steps: int, partials: int) -> float:
    """Seconds from request to picture on an idle engine."""
    text, step, decode = _costs(model, size)
    return text + steps * step[1] + (1 + partials) * decode[1]


class Ticket:
    """The place of one request in the line; leaving it gives up what was not made."""

    def __init__(self, admission: "Admission", pictures: int, work: float) -> None:
        self._admission = admission
        self._left = pictures
        self._work = work
        self._before = admission.pictures + admission.ended
        admission.add(pictures, pictures * work)

    @property
    def ahead(self) -> int:
        """About how many pictures come before these: those that were, less all that ended since."""
        return max(0, self._before - self._admission.ended)

    def picture_done(self) -> None:
        """One picture less to make."""
        self._left -= 1
        self._admission.finish(self._work)

    def interrupted(self) -> None:
        """The engine was lost, and with it the time."""
        self._admission.interrupted()

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
        self._work = 0.0
        self._promised = 0.0
        self._pace = Pace()

    @property
    def wait(self) -> float:
        """Seconds until all that was taken in is made."""
        return self._work * self._pace.seconds_per_work

    def admit(self, plan: Plan, allowed: float | None) -> Ticket:
        """A place in the line; ``allowed`` is how many seconds the client waits, if it says so.

        Raises:
            ApiError: the line is full, or the pictures would come too late.
        """
        facts = (plan.model, plan.size, plan.steps, plan.partials)
        work, alone = picture_work(*facts), picture_alone(*facts)
        count = len(plan.seeds)
        pace = self._pace.seconds_per_work
        # One request is always taken in when nobody else is there, however large it is.
        room = self.queue_seconds if self._work else max(self.queue_seconds, count * work * pace)
        over = self.wait + count * work * pace - room
        if over > 0:
            seconds = self._promise(over, count * work * pace)
            raise too_much(
                f"the line is full: {self.wait:.1f} s of work wait; try again in {seconds:.1f} s",
                seconds,
                "queue_full",
            )
        needed = max(alone, count * work) * max(1.0, pace)
        if allowed is not None and needed > allowed:
            raise ApiError(
                f"this takes {needed:.2f} s even without waiting, and the request allows "
                f"{allowed:g} s: ask for fewer steps or images, or allow more time",
                code="deadline_too_short",
            )
        late = 0.0 if allowed is None else self.wait + needed - allowed
        if late > 0:
            raise too_much(
                f"with {self.wait:.1f} s of work before it, this would come {late:.1f} s too late",
                late,
                "deadline_cannot_be_met",
            )
        return Ticket(self, count, work)

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
        self.pictures += pictures
        self.ended += max(0, -pictures)
        # Sums of fractions do not return to zero by themselves.
        self._work = max(0.0, self._work + work) if self.pictures else 0.0
        if self.pictures < CROWD:
            self._pace.interrupted()

    def finish(self, work: float) -> None:
        """Count one picture out that was made, and learn from when it was."""
        self._pace.finished(work)
        self.add(-1, -work)

    def interrupted(self) -> None:
        """The engine was lost for a while."""
        self._pace.interrupted()


def _costs(model: ModelCard, size: str) -> tuple[float, dict[int, float], dict[int, float]]:
    """Seconds of a prompt; of a step and of a decoding by batch size."""
    costs = model.costs
    return costs["text"], *(
        {int(batch): seconds for batch, seconds in costs[size][stage].items()}
        for stage in ("step", "decode")
    )


def _best(seconds: dict[int, float]) -> float:
    """Of one sample in the batch that makes most."""
    return min(spent / batch for batch, spent in seconds.items())
