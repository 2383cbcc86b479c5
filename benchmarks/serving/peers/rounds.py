"""``cdm-bench peers``: the same student and loads on several servers, which take turns.

Every ratio is taken within a round, in which each server is started anew and measured for a few
seconds. So what the machine does otherwise meets all of them alike, and a speed that one process
keeps for as long as it lives, and the next one has not, is part of the spread.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.errors import BenchError
from benchmarks.figures import figure, in_turn, spread
from benchmarks.load.client import Load, run_load
from benchmarks.prompts import Requests
from benchmarks.serving.bare import bare_engine
from benchmarks.serving.exported import Exported
from benchmarks.serving.measure import Run, measure
from benchmarks.serving.peers.entrants import ALONE, OURS, Entrant, Setting
from benchmarks.serving.servers import Server
from benchmarks.serving.worker import worker

ONE, FOUR, MANY, MIXED = "1 client", "4 clients", "16 clients", "16 clients, 2 and 8 steps"
SHARES = {"50 % load": 0.5, "80 % load": 0.8}  # of the best peer's capacity
SHORT, LONG = 2, 8
CLIENTS = {ONE: 1, FOUR: 4, MANY: 16, MIXED: 16}
REQUESTS = Requests()  # of the model's own steps, every prompt another
_WARM_UP = 0.4  # of a run at 16 clients: the first pictures of a batch size take seconds
# Decibels: bfloat16 reaches some 30; GenAI, which puts rows of zeros where T5 would be, 21 to 27,
# and so do int8 and a tiny decoder; another picture less than 12. The result says each.
_SAME = 18.0

Runs = Mapping[str, Run | None]
Pixels = NDArray[np.float64]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Best:
    """The setting of a peer that answers one client soonest, and that of the most pictures."""

    quick: Setting
    busy: Setting


@dataclass(frozen=True)
class Tried:
    """One setting in the sweep."""

    name: str
    setting: Setting
    one: Run
    many: Run

    def to_json(self) -> dict[str, Any]:
        """Return it for the result."""
        return {
            "server": self.name,
            "setting": asdict(self.setting),
            ONE: self.one,
            MANY: self.many,
        }


def sweep(peers: Sequence[Entrant], seconds: float, say: Progress) -> Iterator[Tried]:
    """Each peer's settings with 1 and with 16 clients, one server at a time."""
    for entrant in peers:
        for setting in entrant.settings:
            say(f"sweep: {entrant.name}, {setting}")
            with entrant.start(setting) as server:
                measure(server, Load(clients=16), REQUESTS, _WARM_UP * seconds)
                one = measure(server, Load(clients=1), REQUESTS, seconds)
                many = measure(server, Load(clients=16), REQUESTS, seconds)
            yield Tried(entrant.name, setting, one, many)


def best(tried: Sequence[Tried]) -> dict[str, Best]:
    """Each peer's best settings."""
    found = {}
    for name in dict.fromkeys(each.name for each in tried):
        own = [each for each in tried if each.name == name]
        quick = min(own, key=lambda each: float(each.one["milliseconds"]["p50"]))
        busy = max(own, key=lambda each: float(each.many["images_per_second"]))
        found[name] = Best(quick.setting, busy.setting)
    return found


def capacity(tried: Sequence[Tried]) -> float:
    """Pictures a second of the best peer."""
    return max(float(each.many["images_per_second"]) for each in tried)


def rounds(
    entrants: Sequence[Entrant],
    exported: Exported,
    settings: Mapping[str, Best],
    peak: float,
    count: int,
    seconds: float,
    say: Progress,
) -> Iterator[tuple[dict[str, Runs], dict[str, float]]]:
    """Of each round every server's runs, by server and load, and what ``_compare`` finds.

    Among them are those of ``exported`` by our engine without a server: what ours could do at most.
    Arrivals at a share of ``peak`` are not put on a server that makes fewer pictures than that.

    Raises:
        BenchError: a server does not start, fails, or draws something else than the others.
    """
    names = [each.name for each in entrants]
    for number in range(count):
        results: dict[str, dict[str, Run | None]] = {}
        drawn: dict[str, Pixels] = {}
        for entrant in in_turn(entrants, number):
            of = settings.get(entrant.name, Best(entrant.settings[0], entrant.settings[0]))
            runs = results.setdefault(entrant.name, {})
            for setting in dict.fromkeys((of.quick, of.busy)):
                say(f"round {number + 1} of {count}: {entrant.name}, {setting}")
                with entrant.start(setting) as server:
                    measure(server, Load(clients=16), REQUESTS, _WARM_UP * seconds)
                    drawn[entrant.name] = _pictures(server)
                    if setting == of.quick:
                        runs[ONE] = measure(server, Load(clients=1), REQUESTS, seconds)
                    if setting == of.busy:
                        runs |= _busy(server, peak, seconds)
        say(f"round {number + 1} of {count}: {ALONE}")
        results[ALONE] = _alone(exported, seconds)
        yield {name: results[name] for name in (*names, ALONE)}, _compare(drawn)


def _alone(exported: Exported, seconds: float) -> dict[str, Run | None]:
    steps = (exported.manifest.default_steps,)
    with worker(bare_engine, exported.folder) as engine:

        def run(load: str, share: float = 1.0) -> Run:
            result: Run = engine(
                {
                    "clients": CLIENTS[load],
                    "steps": (SHORT, LONG) if load == MIXED else steps,
                    "seconds": share * seconds,
                    "known": None,
                }
            )
            return result

        run(MANY, _WARM_UP)
        return {load: run(load) for load in CLIENTS}


def _busy(server: Server, peak: float, seconds: float) -> dict[str, Run | None]:
    found: dict[str, Run | None] = {}
    many = measure(server, Load(clients=16), REQUESTS, seconds)
    found[FOUR] = measure(server, Load(clients=4), REQUESTS, seconds)
    found[MANY] = many
    for name, share in SHARES.items():
        rate, fits = share * peak, share * peak < many["images_per_second"]
        found[name] = measure(server, Load(rate=rate), REQUESTS, 2 * seconds) if fits else None
    found[MIXED] = measure(server, Load(clients=16), Requests(steps=(SHORT, LONG)), seconds)
    return found


FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "images/s, 16 clients": (MANY, ("images_per_second",)),
    "p50, 1 client": (ONE, ("milliseconds", "p50")),
    "p99, 80 % load": ("80 % load", ("milliseconds", "p99")),
    "p50 of 2 steps among 8": (MIXED, ("by_steps", str(SHORT), "p50")),
}
BEST = "best peer"


def ratios(
    results: Sequence[Mapping[str, Runs]], ours: Sequence[str]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Of each of ours its figures over each peer's, and over the best of them, by round."""
    peers = [name for name in results[0] if name not in ours]
    return {
        own: {
            name: {
                other: spread(values)
                for other in (BEST, *peers)
                if (values := list(_over(results, own, other, peers, name)))
            }
            for name in FIGURES
        }
        for own in ours
    }


def _over(
    results: Sequence[Mapping[str, Runs]], own: str, other: str, peers: Sequence[str], name: str
) -> Iterator[float]:
    choose = max if name.startswith("images") else min
    load, keys = FIGURES[name]
    for each in results:
        # None where that load was not put on the server.
        values = [figure(each[p].get(load), keys) for p in (peers if other == BEST else [other])]
        theirs = [value for value in values if value is not None]
        mine = figure(each[own].get(load), keys)
        if mine is not None and theirs:
            yield mine / choose(theirs)


def _compare(drawn: Mapping[str, Pixels]) -> dict[str, float]:
    """All draw the same for the same requests, but for their arithmetic: PSNR to ours, in dB.

    Raises:
        BenchError: one draws something else.
    """
    found = {}
    for name in drawn.keys() - {OURS}:
        error = float(((drawn[name] - drawn[OURS]) ** 2).mean())
        found[name] = float(10 * np.log10(255**2 / max(error, 1e-6)))
        if found[name] < _SAME:
            raise BenchError(
                f"{name} draws other pictures than {OURS}, {found[name]:.1f} dB from them"
            )
    return found


def _pictures(server: Server) -> Pixels:
    """Those of four requests that all servers are asked."""
    body = Requests(known=4).body
    answers = run_load(server.url, Load(clients=4), body, iter(range(4)))
    drawn = []
    for answer in sorted(answers, key=lambda a: a.request):
        if not answer.picture:
            raise BenchError(f"{server.name} answered {answer.problem}")
        with Image.open(io.BytesIO(answer.picture)) as image:
            drawn.append(np.asarray(image.convert("RGB"), dtype=np.float64))
    return np.stack(drawn)
