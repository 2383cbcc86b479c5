"""What came back of a load, and what it amounts to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import percentiles
from benchmarks.load.client import Answer

HELD = 0.99
"""An SLO holds when this share of the requests is answered in time with the right picture."""


@dataclass(frozen=True)
class Point:
    """One load. Latencies and lag in milliseconds, rates in requests a second.

    The lag says how late the client was. ``compared`` pictures had a known right one, ``wrong``
    differed from it. ``good`` are right, as far as known, and within the SLO. ``server`` is what it
    says of itself meanwhile, and ``client_cpu_ms`` what a request took of the client's processor.
    """

    clients: int | None
    rate: float | None
    seconds: float
    requests: int
    answered: int
    shed: int
    failed: int
    compared: int
    wrong: int
    good: int
    throughput: float
    goodput: float
    latency_ms: dict[str, float]
    partial_ms: dict[str, float]
    client_lag_ms: dict[str, float]
    errors: tuple[str, ...]
    server: dict[str, float] | None = None
    client_cpu_ms: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the SLO held."""
        return self.requests > 0 and self.good >= HELD * self.requests


def summarise(
    answers: Sequence[Answer],
    known: Mapping[int, bytes],
    slo_ms: float,
    clients: int | None = None,
    rate: float | None = None,
) -> Point:
    """Sum up at least one answer; ``known`` are the right pictures by request."""
    answered = [a for a in answers if a.picture]
    compared = [a for a in answered if a.request in known]
    wrong = {id(a) for a in compared if a.picture != known[a.request]}
    good = [a for a in answered if id(a) not in wrong and 1000 * a.latency <= slo_ms]
    refused = [a for a in answers if not a.picture]
    shed = sum(a.status == 429 for a in refused)
    seconds = elapsed(answers)
    return Point(
        clients=clients,
        rate=rate,
        seconds=round(seconds, 3),
        requests=len(answers),
        answered=len(answered),
        shed=shed,
        failed=len(refused) - shed,
        compared=len(compared),
        wrong=len(wrong),
        good=len(good),
        throughput=round(len(answered) / seconds, 2),
        goodput=round(len(good) / seconds, 2),
        latency_ms=percentiles([1000 * a.latency for a in answered]),
        partial_ms=percentiles([1000 * (a.partial - a.due) for a in answered if a.partial]),
        client_lag_ms=percentiles([1000 * (a.sent - a.due) for a in answers]),
        errors=tuple(sorted({a.problem for a in refused})[:5]),
    )


def elapsed(answers: Sequence[Answer]) -> float:
    """Seconds to the last answer: a server that answers by batches is not cut off in one."""
    return max(a.ended for a in answers) - min(a.due for a in answers)
