"""``cdm-bench overhead``: the whole server against the same engine without any server.

The contenders take turns in rounds, and every ratio is taken within its round, so that what the
machine does besides meets all of them alike.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.errors import picked
from benchmarks.figures import figure, in_turn, spread, spread_text, table_of
from benchmarks.load.client import JSON, PNG, Load
from benchmarks.progress import progress
from benchmarks.prompts import Requests
from benchmarks.record import Record
from benchmarks.serving.bare import bare_engine
from benchmarks.serving.exported import Exported, find_export
from benchmarks.serving.measure import Run, measure
from benchmarks.serving.servers import served
from benchmarks.serving.worker import worker

GRAPHS, ENGINE = "graphs in a loop", "engine alone"
SERVER = {"server, JSON": JSON, "server, PNG": PNG}
CONTENDERS = (GRAPHS, ENGINE, *SERVER)
BATCH = 16  # of the graphs in a loop
KNOWN = 4  # prompts come round again after so many: the text encoder hardly counts
SHORT, LONG = 2, 8
ALONE, BUSY, MIXED = "alone", "busy", "mixed"
CLIENTS = {ALONE: 1, BUSY: 16, MIXED: 16}
_PARTS = ("engine", "triton", "gateway")

Round = dict[str, Run]
# Name, load, contender, against, and the keys of the figure.
RATIOS: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    *(
        (f"images/s at 16: {name} / {against}", BUSY, name, against, ("images_per_second",))
        for against in (GRAPHS, ENGINE)
        for name in CONTENDERS[1:]
        if name != against
    ),
    *(
        (f"p50 alone: {name} / {ENGINE}", ALONE, name, ENGINE, ("milliseconds", "p50"))
        for name in SERVER
    ),
    *(
        (
            f"p50 of {SHORT} steps among {LONG}: {name} / {ENGINE}",
            MIXED,
            name,
            ENGINE,
            ("by_steps", str(SHORT), "p50"),
        )
        for name in SERVER
    ),
)


def overhead(arguments: argparse.Namespace, console: Console) -> int:
    """Measure, print and keep."""
    record = Record(arguments.out, "overhead", ("aiohttp", "fastapi", "grpcio", "nvidia-pytriton"))
    exported = find_export(arguments.repository, arguments.model)
    loads = picked("--only", arguments.only, CLIENTS)
    total = arguments.rounds * sum(len(_contenders(load)) for load in loads)
    with progress("runs", total, console) as advance:
        rounds = measure_overhead(exported, loads, arguments.rounds, arguments.seconds, advance)
    for load in loads:
        console.print(_table(load, rounds[load]))
    found = ratios(rounds)
    table = table_of("Ratios, by round", ("", "median (range)"))
    for name, ratio in found.items():
        table.add_row(name, spread_text(ratio))
    console.print(table)
    record.write(
        {
            "model": exported.folder.name,
            "parameters": exported.parameters,
            "seconds": arguments.seconds,
            "ratios": found,
            "rounds": rounds,
        }
    )
    console.print(f"kept in {record.path}")
    return 0


def measure_overhead(
    exported: Exported,
    loads: tuple[str, ...],
    count: int,
    seconds: float,
    on_run: Callable[[], None],
) -> dict[str, list[Round]]:
    """By load every round's figures of each contender; ``on_run`` is called after each run.

    Raises:
        BenchError: the server or the engine failed, or a run was too short.
    """
    rounds: dict[str, list[Round]] = {load: [] for load in loads}
    one = (exported.manifest.default_steps,)
    steps: dict[str, tuple[int, ...]] = {ALONE: one, BUSY: one, MIXED: (SHORT, LONG)}
    with ExitStack() as stack:
        server = stack.enter_context(served(exported))
        engine = stack.enter_context(worker(bare_engine, exported.folder))

        def run(name: str, load: str) -> Any:
            if name == GRAPHS:
                return engine({"batch": BATCH, "seconds": seconds})
            if name == ENGINE:
                order = {"clients": CLIENTS[load], "steps": steps[load], "seconds": seconds}
                return engine(order | {"known": KNOWN})
            requests = Requests(steps=steps[load], known=KNOWN)
            return measure(server, Load(clients=CLIENTS[load]), requests, seconds, SERVER[name])

        for number in range(count):
            for load in loads:
                results: Round = {}
                for name in in_turn(_contenders(load), number):
                    results[name] = run(name, load)
                    on_run()
                rounds[load].append(results)
    return rounds


def ratios(rounds: dict[str, list[Round]]) -> dict[str, dict[str, float]]:
    """The spread of each of ``RATIOS`` whose load was measured."""
    found = {}
    for name, load, *two, keys in RATIOS:
        pairs = [[figure(each[one], keys) or 0.0 for one in two] for each in rounds.get(load, ())]
        if pairs:
            found[name] = spread([a / b for a, b in pairs])
    return found


def _contenders(load: str) -> tuple[str, ...]:
    """The graphs in a loop have no clients, and stand beside many."""
    return CONTENDERS if load == BUSY else CONTENDERS[1:]


def _table(load: str, rounds: list[Round]) -> Table:
    """Medians; the spread is in the file, and in the ratios."""
    title = f"{load}, {CLIENTS[load]} clients: medians of {len(rounds)} rounds"
    spent_by = (f"CPU ms, {part}" for part in (*_PARTS, "client"))
    table = table_of(title, ("", "images/s", "p50 ms", "p99 ms", *spent_by))

    def cell(values: list[float]) -> str:
        return f"{median(values):.1f}" if values else ""

    for name in _contenders(load):
        runs = [each[name] for each in rounds]
        spent = [run["cpu_milliseconds"] for run in runs]
        table.add_row(
            name,
            cell([run["images_per_second"] for run in runs]),
            *(cell([run["milliseconds"][p] for run in runs]) for p in ("p50", "p99")),
            *(cell([parts[part] for parts in spent if part in parts]) for part in _PARTS),
            cell([run["client_cpu_ms"] for run in runs if "client_cpu_ms" in run]),
        )
    return table
