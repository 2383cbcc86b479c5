"""``cdm-bench load``: latency against load, every picture compared with the same one made alone."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.load.client import EXPECTED, Load, cpu_seconds, get, run_load
from benchmarks.load.metrics import look, work
from benchmarks.load.summary import Point, summarise
from benchmarks.prompts import Requests

_HALVINGS = 5
_CLOSE = 0.05  # of the rate, between the highest that held and the lowest that did not
_FEW = 5  # requests, in the whole time: nothing is learnt from fewer
KNOWN = 48  # different requests


@dataclass(frozen=True)
class Plan:
    """What to send, and for how many seconds at each load."""

    url: str
    clients: tuple[int, ...] = (1, 4, 16)
    rates: tuple[float, ...] = ()
    search: bool = True
    slo_ms: float = 500.0
    seconds: float = 10.0
    requests: Requests = field(default_factory=lambda: Requests(known=KNOWN))


class LoadTest:
    """Points are in ``measured`` as soon as they are had."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        """``say`` is told what is going on."""
        self.plan = plan
        self.measured: list[Point] = []
        self.alone: dict[int, bytes] = {}
        self.unsteady: set[int] = set()
        self._say = say

    def run(self) -> Iterator[Point]:
        """Measure one load after another.

        Raises:
            BenchError: the server does not answer, or no longer, or none of the requests.
        """
        get(self.plan.url, "/v1/models")  # says so at once if nobody answers
        self._say("the requests alone, before")
        self.alone = self._ask_alone()
        for load in (
            *(Load(clients=n) for n in self.plan.clients),
            *(Load(rate=rate) for rate in self.plan.rates),
        ):
            yield self._measure(load)
        if self.plan.search:
            yield from self._search()
        self._say("the requests alone, after")
        again = self._ask_alone()
        self.unsteady = {n for n, picture in self.alone.items() if again.get(n) != picture}

    @property
    def best_rate(self) -> float | None:
        """The highest Poisson rate that was tried and held."""
        return max((m.rate for m in self.measured if m.rate and m.holds), default=None)

    def result(self) -> dict[str, Any]:
        """Everything so far, for JSON."""
        return {
            "plan": asdict(self.plan),
            "highest_rate_within_slo": self.best_rate,
            "different_when_asked_alone_again": len(self.unsteady),
            "points": [asdict(point) | {"holds": point.holds} for point in self.measured],
        }

    def _ask_alone(self) -> dict[int, bytes]:
        """The picture of each request, one at a time."""
        plan = self.plan
        asked, known = plan.requests, iter(range(KNOWN))
        answers = run_load(plan.url, Load(clients=1), asked.body, known, route=asked.route)
        pictures = {a.request: a.picture for a in answers if a.picture}
        if len(pictures) < len(answers):
            bad = next(a for a in answers if not a.picture)
            if bad.status is None:
                raise BenchError(f"{plan.url} does not answer ({bad.error}); {EXPECTED}")
            raise BenchError(
                f"{len(answers) - len(pictures)} of {len(answers)} requests failed, one at a time; "
                f"the first answer: {bad.problem}"
            )
        return pictures

    def _measure(self, load: Load) -> Point:
        self._say(f"{load}, {self.plan.seconds:g} s")
        before = look(self.plan.url)
        requests, seconds, cpu = self.plan.requests, self.plan.seconds, cpu_seconds()
        numbers = itertools.cycle(range(KNOWN))
        route = requests.route
        answers = run_load(self.plan.url, load, requests.body, numbers, seconds, route=route)
        cpu = cpu_seconds() - cpu
        if not answers:
            raise BenchError(f"nothing was due in {seconds:g} s at {load}: more --seconds")
        point = replace(
            summarise(answers, self.alone, self.plan.slo_ms, load.clients, load.rate),
            server=work(before, look(self.plan.url)),
            client_cpu_ms=round(1000 * cpu / len(answers), 2),
        )
        self.measured.append(point)
        if max(answers, key=lambda a: a.due).status is None:
            self._still_there(load)
        return point

    def _still_there(self, load: Load) -> None:
        try:
            get(self.plan.url, "/v1/models")
        except BenchError:
            raise BenchError(f"{self.plan.url} stopped answering under {load}") from None

    def _search(self) -> Iterator[Point]:
        """Halve the distance between the highest rate that holds and the lowest that does not."""
        open_loop = [m for m in self.measured if m.rate]
        low = max((p.rate or 0.0 for p in open_loop if p.holds), default=0.0)
        failed = [p.rate or 0.0 for p in open_loop if not p.holds and (p.rate or 0.0) > low]
        # An open loop queues before the server is full: its closed-loop throughput is above.
        closed = max((m.throughput for m in self.measured if m.clients), default=None)
        high = min(failed, default=closed or 2 * low or 32.0)
        for _ in range(_HALVINGS):
            if high - low <= _CLOSE * high:
                return
            rate = round((low + high) / 2, 3)
            if rate * self.plan.seconds < _FEW:
                return
            measured = self._measure(Load(rate=rate))
            yield measured
            low, high = (rate, high) if measured.holds else (low, rate)
