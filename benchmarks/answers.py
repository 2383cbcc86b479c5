"""What came back of a load, and what it amounts to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.tally import percentiles

HELD = 0.99
"""An SLO holds when this share of the requests is answered in time with the right picture."""


@dataclass(frozen=True)
class Answer:
    """One request from ``due`` to ``ended``, in seconds of one clock.

    ``picture`` is the file in base64; ``status`` is None when no answer came; ``partial`` is when
    the first preview came.
    """

    request: int
    due: float
    sent: float
    ended: float
    status: int | None
    picture: str | None = None
    partial: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Point:
    """One load. Latencies and lag in milliseconds, rates in requests a second.

    Latency is counted from when the request was due, so a client that is late hides nothing; the
    lag says how late it was. ``compared`` pictures had a known right one, ``wrong`` differed from
    it. ``good`` are right, as far as known, and within the SLO.
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

    @property
    def holds(self) -> bool:
        """Whether the SLO held."""
        return self.requests > 0 and self.good >= HELD * self.requests


def summarise(
    answers: Sequence[Answer],
    known: Mapping[int, str],
    slo_ms: float,
    clients: int | None = None,
    rate: float | None = None,
) -> Point:
    """Sum up at least one answer; ``known`` are the right pictures by request."""
    answered = [a for a in answers if a.status == 200 and a.picture]
    compared = [a for a in answered if a.request in known]
    wrong = {id(a) for a in compared if a.picture != known[a.request]}
    good = [a for a in answered if id(a) not in wrong and 1000 * (a.ended - a.due) <= slo_ms]
    seconds = max(a.ended for a in answers) - min(a.due for a in answers)
    refused = [a for a in answers if not (a.status == 200 and a.picture)]
    shed = sum(a.status == 429 for a in refused)
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
        latency_ms=_ms([a.ended - a.due for a in answered]),
        partial_ms=_ms([a.partial - a.due for a in answered if a.partial is not None]),
        client_lag_ms=_ms([a.sent - a.due for a in answers]),
        errors=tuple(sorted({f"{a.status or 'no answer'}: {a.error[:200]}" for a in refused})[:5]),
    )


def _ms(seconds: Sequence[float]) -> dict[str, float]:
    return percentiles([1000 * value for value in seconds])
