"""One load on one server: what it made and what that cost."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.figures import percentiles
from benchmarks.load.client import JSON, Load, cpu_seconds, run_load
from benchmarks.prompts import Requests
from benchmarks.serving.servers import Server

Run = dict[str, Any]
_STARTS = itertools.count(0, 1_000_000)


def measure(
    server: Server, load: Load, requests: Requests, seconds: float, accept: str = JSON
) -> Run:
    """Pictures a second, latencies, and CPU-milliseconds a picture of each part and the client.

    Raises:
        BenchError: a request failed, or there was none.
    """
    before, client = server.cpu_seconds(), cpu_seconds()
    answers = run_load(server.url, load, requests.body, _numbers(), seconds, accept=accept)
    after, client = server.cpu_seconds(), cpu_seconds() - client
    for answer in answers:
        if not answer.picture:
            raise BenchError(f"{server.name} answered {answer.problem}")
    spent = {part: value - before.get(part, 0.0) for part, value in after.items()}
    steps = [requests.steps_of(a.request) if requests.steps else 0 for a in answers]
    run = made(steps, [a.due for a in answers], [a.ended for a in answers])
    each = {part: 1e3 * value / len(answers) for part, value in spent.items()}
    return run | {
        "cpu_milliseconds": {part: round(value, 2) for part, value in each.items()},
        "server_cpu_ms": round(sum(each.values()), 2),
        "client_cpu_ms": round(1e3 * client / len(answers), 3),
    }


def made(steps: Sequence[int], due: Sequence[float], ended: Sequence[float]) -> Run:
    """Pictures a second, to the last one, and latencies, also of each number of steps.

    Raises:
        BenchError: there is no picture.
    """
    if not due:
        raise BenchError("nothing was finished in one of the runs; give more --seconds")
    latencies: dict[int, list[float]] = {}
    for count, begin, end in zip(steps, due, ended, strict=True):
        latencies.setdefault(count, []).append(1e3 * (end - begin))
    return {
        "requests": len(due),
        "images_per_second": round(len(due) / (max(ended) - min(due)), 2),
        "milliseconds": percentiles([each for of in latencies.values() for each in of]),
        "by_steps": {str(count): percentiles(of) for count, of in sorted(latencies.items())},
    }


def _numbers() -> Iterator[int]:
    """Requests that no server has seen: each run has its own."""
    return itertools.count(next(_STARTS))
