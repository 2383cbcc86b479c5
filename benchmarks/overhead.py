"""What the server costs: the whole path against the same engine without any server.

Closed loops of one client, of sixteen, and of sixteen of which half ask for two steps and half for
eight. The contenders take turns in rounds, and every ratio is taken within its round, so that what
the machine does besides meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.bare import bare_engine
from benchmarks.errors import BenchError
from benchmarks.exported import Exported
from benchmarks.loops import Load
from benchmarks.served import served
from benchmarks.tally import spread

CLIENTS = 16
SHORT, LONG = 2, 8
BARE, JSON, PNG = "bare engine", "server, json", "server, png"
LOADS = {
    "alone": (BARE, JSON, PNG),
    "busy": (BARE, JSON, PNG),
    "mixed": (BARE, JSON, PNG),
}

Round = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """A ratio of two contenders' figures under a load, and what it must not miss."""

    name: str
    load: str
    contender: str
    against: str
    figure: Callable[[Mapping[str, Any]], float]
    bar: float
    at_least: bool

    def judge(self, rounds: list[Round]) -> dict[str, Any]:
        """The ratio's spread over the rounds, and whether its median holds.

        Raises:
            BenchError: a run was too short to finish a picture.
        """
        try:
            ratios = [
                self.figure(each[self.contender]) / self.figure(each[self.against])
                for each in rounds
            ]
        except (KeyError, ZeroDivisionError):
            raise BenchError(
                f"{self.name}: nothing was finished in one of the runs; give more --seconds"
            ) from None
        ratio = spread(ratios)
        holds = ratio["median"] >= self.bar if self.at_least else ratio["median"] <= self.bar
        return {"ratio": ratio, "bar": self.bar, "at_least": self.at_least, "holds": holds}


def _throughput(of: Mapping[str, Any]) -> float:
    return float(of["images_per_second"])


def _median(of: Mapping[str, Any]) -> float:
    return float(of["milliseconds"]["p50"])


def _short_median(of: Mapping[str, Any]) -> float:
    return float(of["by_steps"][str(SHORT)]["p50"])


BARS = (
    Bar("throughput at 16, json", "busy", JSON, BARE, _throughput, 0.75, at_least=True),
    Bar("throughput at 16, png", "busy", PNG, BARE, _throughput, 0.75, at_least=True),
    Bar("p50 alone, json", "alone", JSON, BARE, _median, 1.3, at_least=False),
    Bar("p50 alone, png", "alone", PNG, BARE, _median, 1.3, at_least=False),
    Bar("short p50 mixed, json", "mixed", JSON, BARE, _short_median, 1.3, at_least=False),
)


@dataclass(frozen=True)
class Overhead:
    """What to measure: ``seconds`` of each contender under each load, ``rounds`` times."""

    exported: Exported
    rounds: int
    seconds: float
    loads: tuple[str, ...] = tuple(LOADS)

    @property
    def runs(self) -> int:
        """How many times the clock runs."""
        return self.rounds * sum(len(LOADS[load]) for load in self.loads)


def measure_overhead(plan: Overhead, on_run: Callable[[], None]) -> dict[str, Any]:
    """Every round's figures, and the bars' ratios; ``on_run`` is called after each run.

    Raises:
        BenchError: the server or the engine failed, or a run was too short.
    """
    steps = plan.exported.manifest.default_steps
    clients: dict[str, Load] = {
        "alone": [steps],
        "busy": [steps] * CLIENTS,
        "mixed": [SHORT, LONG] * (CLIENTS // 2),
    }
    rounds: dict[str, list[Round]] = {load: [] for load in plan.loads}
    with _contenders(plan.exported) as (contenders, costs):
        for number in range(plan.rounds):
            for load in plan.loads:
                names = LOADS[load]
                first = number % len(names)
                results: Round = {}
                for name in (*names[first:], *names[:first]):
                    results[name] = contenders[name](clients[load], plan.seconds)
                    on_run()
                rounds[load].append(results)
    return {
        "model": plan.exported.folder.name,
        "parameters": plan.exported.parameters,
        "seconds": plan.seconds,
        "costs": costs,
        "bars": {b.name: b.judge(rounds[b.load]) for b in BARS if b.load in plan.loads},
        "rounds": rounds,
    }


Contender = Callable[[Load, float], dict[str, Any]]


@contextmanager
def _contenders(exported: Exported) -> Iterator[tuple[dict[str, Contender], dict[str, Any]]]:
    """All of them running, one after the other warmed up."""
    with served(exported) as server:
        costs = server.costs(exported.folder.name)
        with bare_engine(exported, costs) as bare:
            yield (
                {
                    BARE: bare.run,
                    JSON: server.run,
                    PNG: lambda load, seconds: server.run(load, seconds, "png"),
                },
                costs,
            )
