"""A discrete-event simulation of the scheduler on one machine or several.

Each machine has the scheduler's three stages with its rules: the rank and its ``PATIENCE``, and
``best_batch``, which are the engine's own. The stages that are at work at one moment share the
processor in equal parts, since what an execution costs was measured with all of it. Machines are
chosen as a balancer by least connections does it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cdm_serve.engine.costs import Costs, Seconds, best_batch
from cdm_serve.engine.scheduler import PATIENCE

TEXT, STEP, DECODE = range(3)


@dataclass(frozen=True)
class Arrival:
    """A request for one picture, in seconds from the beginning."""

    time: float
    steps: int
    size: str


@dataclass(eq=False)
class Request:
    """One on its way; ``finished`` is the moment at which its pixels were there."""

    arrival: Arrival
    rank: float
    steps_left: int
    finished: float = field(default=float("nan"))

    @property
    def latency(self) -> float:
        """Seconds."""
        return self.finished - self.arrival.time


class Machine:
    """One scheduler; ``costs`` are its seconds, ``done`` is called with whatever is finished."""

    def __init__(self, costs: Costs, done: Callable[[Request], None]) -> None:
        self.now = 0.0
        self.in_flight = 0
        self._costs = costs
        self._done = done
        self._waiting: list[list[Request]] = [[], [], []]
        self._running: dict[int, tuple[float, list[Request]]] = {}

    def arrive(self, arrival: Arrival) -> None:
        """Take in a request at its own time, which is now or was just reached."""
        duration = arrival.steps * self._costs.step[arrival.size][1]
        rank = arrival.time + PATIENCE * duration
        self._waiting[TEXT].append(Request(arrival, rank, arrival.steps))
        self.in_flight += 1

    def advance(self, until: float) -> None:
        """Let the time go on; stops early when nothing is left to do."""
        while True:
            self._begin()
            if not self._running:
                break
            share = len(self._running)
            stage = min(self._running, key=lambda stage: self._running[stage][0])
            spent = self._running[stage][0]
            if self.now + spent * share > until:
                self._spend((until - self.now) / share)
                break
            self.now += spent * share
            self._spend(spent)
            self._end(stage)
        if until < float("inf"):
            self.now = until

    def _spend(self, seconds: float) -> None:
        for stage, (left, batch) in self._running.items():
            self._running[stage] = left - seconds, batch

    def _begin(self) -> None:
        """Give every idle stage its next batch: the lowest rank, and others of its size."""
        for stage, waiting in enumerate(self._waiting):
            if not waiting or stage in self._running:
                continue
            waiting.sort(key=lambda request: request.rank)
            size = waiting[0].arrival.size
            same = [request for request in waiting if request.arrival.size == size]
            seconds = self._seconds(stage, size)
            batch = same[: best_batch(seconds, len(same))]
            self._waiting[stage] = [request for request in waiting if request not in batch]
            self._running[stage] = seconds[len(batch)], batch

    def _end(self, stage: int) -> None:
        _, batch = self._running.pop(stage)
        for request in batch:
            if stage == STEP:
                request.steps_left -= 1
            if stage == DECODE:
                request.finished = self.now
                self.in_flight -= 1
                self._done(request)
            else:
                self._waiting[STEP if request.steps_left else DECODE].append(request)

    def _seconds(self, stage: int, size: str) -> Seconds:
        if stage == TEXT:
            return self._costs.text
        return (self._costs.step if stage == STEP else self._costs.decode)[size]


def simulate(costs: Costs, arrivals: Iterable[Arrival], machines: int = 1) -> list[Request]:
    """All requests, in the order in which they were finished."""
    finished: list[Request] = []
    farm = [Machine(costs, finished.append) for _ in range(machines)]
    for arrival in arrivals:
        for machine in farm:
            machine.advance(arrival.time)
        min(farm, key=lambda machine: machine.in_flight).arrive(arrival)
    for machine in farm:
        machine.advance(float("inf"))
    return finished


def saturated(costs: Costs, clients: int, steps: int, size: str, count: int) -> float:
    """Images a second of a closed loop, after as many again to fill the line."""
    finished: list[float] = []

    def again(request: Request) -> None:
        finished.append(request.finished)
        if len(finished) < 2 * count:
            machine.arrive(Arrival(request.finished, steps, size))

    machine = Machine(costs, again)
    for _ in range(clients):
        machine.arrive(Arrival(0.0, steps, size))
    machine.advance(float("inf"))
    return count / (finished[2 * count - 1] - finished[count - 1])


def poisson(
    rate: float, seconds: float, steps: Sequence[int], size: str, seed: int
) -> Iterator[Arrival]:
    """Arrivals at a mean ``rate`` a second; each draws its number of steps."""
    draw = random.Random(seed)
    time = draw.expovariate(rate)
    while time < seconds:
        yield Arrival(time, draw.choice(steps), size)
        time += draw.expovariate(rate)


def scaled(costs: Costs, factor: float) -> Costs:
    """The same stages, all slower by a factor."""

    def slower(seconds: Seconds) -> Seconds:
        return {batch: factor * spent for batch, spent in seconds.items()}

    return Costs(
        slower(costs.text),
        {size: slower(seconds) for size, seconds in costs.step.items()},
        {size: slower(seconds) for size, seconds in costs.decode.items()},
    )
