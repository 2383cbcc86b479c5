"""``cdm-bench peers``: the same student and load on four servers, which take turns.

Every ratio is taken within a round, in which each server is started anew and measured for a few
seconds. So what the machine does otherwise meets all of them alike, and a speed that one process
keeps for as long as it lives, and the next one has not, is part of the spread.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.answers import Answer
from benchmarks.contenders import Contender, Setting, started
from benchmarks.endpoint import Endpoint
from benchmarks.errors import BenchError
from benchmarks.prompts import Requests
from benchmarks.tally import percentiles
from benchmarks.thin import Load, cpu_seconds, run_thin

OURS, INT8 = "cdm-serve", "cdm-serve int8"
FASTAPI, LITSERVE, RAY = "FastAPI", "LitServe", "Ray Serve"
MODULES = {FASTAPI: "fastapi", LITSERVE: "litserve", RAY: "ray"}
CLIENTS = (1, 16)
_BATCHING = (
    Setting(batch=16, wait=0.01, bf16=True),
    Setting(batch=16, wait=0.05, bf16=True),
    Setting(batch=8, wait=0.01, bf16=True),
    Setting(batch=8, wait=0.01, workers=2, bf16=True),
    Setting(batch=16, wait=0.01),
)
# bf16 is not how its users write it, so FastAPI keeps the float32 the pipeline has.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    FASTAPI: (Setting(), Setting(lock=True)),
    LITSERVE: _BATCHING,
    RAY: _BATCHING,
}
_WARM_UP = 0.4  # of a run at 16 clients: the first pictures of a batch size take seconds
_SAME = 20.0  # decibels; bfloat16 reaches some 30, another picture less than 12


@dataclass(frozen=True)
class Plan:
    """The student, where its exports are, and how long to measure (seconds of one run)."""

    student: Path
    repository: Path
    int8: Path | None = None
    rounds: int = 5
    alone_seconds: float = 5.0
    busy_seconds: float = 8.0
    sweep_seconds: float = 8.0


Run = dict[str, Any]
Pixels = NDArray[np.float64]
Progress = Callable[[str], None]


def sweep(plan: Plan, say: Progress) -> Iterator[tuple[str, Setting, Run]]:
    """Each peer's settings at 16 clients, one server at a time."""
    for name, settings in SETTINGS.items():
        for setting in settings:
            say(f"sweep: {name}, {setting}")
            with _peer(plan, name, setting) as peer:
                measure(peer, CLIENTS[-1], _WARM_UP * plan.sweep_seconds)
                yield name, setting, measure(peer, CLIENTS[-1], plan.sweep_seconds)


def best(tried: Sequence[tuple[str, Setting, Run]]) -> dict[str, Setting]:
    """Each peer's setting of the highest throughput."""
    chosen: dict[str, tuple[float, Setting]] = {}
    for name, setting, run in tried:
        if name not in chosen or run["images_per_second"] > chosen[name][0]:
            chosen[name] = (run["images_per_second"], setting)
    return {name: setting for name, (_, setting) in chosen.items()}


def rounds(
    plan: Plan, settings: Mapping[str, Setting], say: Progress
) -> Iterator[dict[str, dict[str, Run]]]:
    """Of each round every server's runs, by server and number of clients.

    Raises:
        BenchError: a server does not start, or draws something else than the others.
    """
    repositories = {OURS: plan.repository}
    if plan.int8 is not None:
        repositories[INT8] = plan.int8
    names = (*repositories, *settings)
    for number in range(plan.rounds):
        results: dict[str, dict[str, Run]] = {}
        drawn: dict[str, Pixels] = {}
        # The order goes round, so that nobody always follows the same one.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            say(f"round {number + 1} of {plan.rounds}: {name}")
            if name in repositories:
                server = _ours(name, repositories[name])
            else:
                server = _peer(plan, name, settings[name])
            with server as contender:
                measure(contender, CLIENTS[-1], _WARM_UP * plan.busy_seconds)
                drawn[name] = _pictures(contender.endpoint)
                results[name] = {
                    str(clients): measure(contender, clients, seconds)
                    for clients, seconds in zip(
                        CLIENTS, (plan.alone_seconds, plan.busy_seconds), strict=True
                    )
                }
        _compare(drawn)
        yield {name: results[name] for name in names}


def measure(contender: Contender, clients: int, seconds: float) -> Run:
    """One closed loop; every request has a prompt of its own.

    Raises:
        BenchError: a request failed.
    """
    server, client = contender.cpu_seconds(), cpu_seconds()
    answers = run_thin(
        contender.endpoint,
        Load(clients=clients),
        lambda number: json.dumps(Requests().body(number)).encode(),
        itertools.count(),
        seconds,
    )
    server, client = contender.cpu_seconds() - server, cpu_seconds() - client
    for answer in answers:
        if not answer.picture:
            raise BenchError(f"{contender.name} answered {answer.status}: {answer.error[:300]}")
    # To the last answer: a server that answers by whole batches is not cut off in one.
    took = max(a.ended for a in answers) - min(a.sent for a in answers)
    return {
        "images_per_second": round(len(answers) / took, 2),
        "milliseconds": percentiles([1000 * (a.ended - a.sent) for a in answers]),
        "requests": len(answers),
        "server_cpu_ms": round(1000 * server / len(answers), 2),
        "client_cpu_ms": round(1000 * client / len(answers), 3),
    }


def ratios(results: Sequence[Mapping[str, Mapping[str, Run]]]) -> dict[str, dict[str, float]]:
    """Ours over each peer, by round: throughput at 16 clients and p50 of one.

    Where there is an int8 export too, its ratios follow, their names begun by ``int8``.
    """
    found = _over_peers(results, OURS)
    if INT8 in results[0]:
        found |= {f"int8 {name}": each for name, each in _over_peers(results, INT8).items()}
    return found


def _over_peers(
    results: Sequence[Mapping[str, Mapping[str, Run]]], ours: str
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for peer in (name for name in results[0] if name not in (OURS, INT8)):
        for figure, of in (("throughput", _throughput), ("p50", _p50)):
            values = [of(each[ours]) / of(each[peer]) for each in results]
            found[f"{figure} / {peer}"] = spread(values)
    batching = [name for name in results[0] if name in (LITSERVE, RAY)]
    values = [
        _throughput(each[ours]) / max(_throughput(each[name]) for name in batching)
        for each in results
    ]
    return {**found, "throughput / best batching peer": spread(values)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    named: dict[str, Any] = {"median": np.median(values), "low": min(values), "high": max(values)}
    return {name: round(float(value), 3) for name, value in named.items()}


def _throughput(runs: Mapping[str, Run]) -> float:
    return float(runs[str(CLIENTS[-1])]["images_per_second"])


def _p50(runs: Mapping[str, Run]) -> float:
    return float(runs[str(CLIENTS[0])]["milliseconds"]["p50"])


@contextmanager
def _ours(name: str, repository: Path) -> Iterator[Contender]:
    def command(port: int) -> list[str]:
        where = str(repository.resolve())
        return ["cdm_serve", "--model-repository", where, "--port", str(port)]

    with started(name, command) as contender:
        yield contender


@contextmanager
def _peer(plan: Plan, name: str, setting: Setting) -> Iterator[Contender]:
    module, student = f"benchmarks.peers.{MODULES[name]}_diffusers", str(plan.student.resolve())

    def command(port: int) -> list[str]:
        return [module, student, str(port), *setting.arguments()]

    with started(name, command) as contender:
        yield contender


def _compare(drawn: Mapping[str, Pixels]) -> None:
    """All draw the same for the same requests, but for their arithmetic."""
    for name, pictures in drawn.items():
        error = float(((pictures - drawn[OURS]) ** 2).mean())
        if error and 10 * np.log10(255**2 / error) < _SAME:
            raise BenchError(f"{name} draws other pictures than {OURS}")


def _pictures(endpoint: Endpoint) -> Pixels:
    answers = run_thin(
        endpoint,
        Load(clients=4),
        lambda number: json.dumps(Requests().body(number)).encode(),
        iter(range(4)),
    )
    return np.stack([_pixels(a) for a in sorted(answers, key=lambda a: a.request)])


def _pixels(answer: Answer) -> Pixels:
    if not answer.picture:
        raise BenchError(f"no picture: {answer.status}: {answer.error[:300]}")
    with Image.open(io.BytesIO(base64.b64decode(answer.picture))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def tried_json(tried: Sequence[tuple[str, Setting, Run]]) -> list[dict[str, Any]]:
    """The sweep, for JSON."""
    return [{"server": name, "setting": asdict(setting), **run} for name, setting, run in tried]
