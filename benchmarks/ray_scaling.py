"""Pictures a second of ``cdm-serve --ray`` by the number of engines, and what the cores did.

``python -m benchmarks.ray_scaling --repository FOLDER --out result.json``. One engine alone would
take all cores of this machine, and the second none that are free. So each node of the cluster is a
machine with a share of one core: it and all it starts are bound to the core, OpenVINO takes one
thread, and a control group keeps them to the share while the clock runs. The gateway, Ray's head
and the client run where there is room.

The rounds go up and down in turns. Every picture is compared with the one made at the beginning.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.answers import Answer, summarise
from benchmarks.endpoint import Endpoint
from benchmarks.errors import BenchError
from benchmarks.exported import find_export
from benchmarks.prompts import Requests
from benchmarks.ray_cluster import cluster, served
from benchmarks.record import write_result
from benchmarks.thin import Load, run_thin

CORES = len(os.sched_getaffinity(0))
KNOWN = 26
# Many, so that what engines do outweighs what Ray does for each request; and different, or all
# clients of an engine would be answered and ask again at once.
STEPS = range(4, 17)
ENGINE = "triton_python_b"  # the kernel keeps 15 characters
PARTS = ("engines", "gateway", "ray", "client")
SLO_MS = 10_000.0


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write it to ``--out``; 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.ray_scaling", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N")
    parser.add_argument("--share", type=float, default=0.4, help="of a core (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    arguments = parser.parse_args(argv)
    try:
        find_export(arguments.repository, None)
        plan = Plan(
            arguments.repository,
            arguments.clients,
            arguments.seconds,
            arguments.share,
        )
        result = measure(plan, arguments.engines, arguments.rounds)
        Console().print(_table(result))
        if arguments.out is not None:
            write_result(arguments.out, result, ["ray", "nvidia-pytriton"])
    except BenchError as error:
        print(f"ray_scaling: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Plan:
    """What every run sends, and for how long."""

    repository: Path
    clients: int
    seconds: float
    share: float

    def body(self, number: int) -> bytes:
        """The JSON of a request."""
        return json.dumps(Requests(steps=STEPS[number % len(STEPS)]).body(number)).encode()


def measure(plan: Plan, engines: list[int], rounds: int) -> dict[str, Any]:
    """Runs in the order they were made.

    Raises:
        BenchError: something does not come up, or a picture is wrong or missing.
    """
    order = [n for turn in range(rounds) for n in (engines if turn % 2 == 0 else engines[::-1])]
    known: dict[int, str] = {}
    runs = []
    with cluster(max(engines)) as nodes:
        for count in order:
            with served(nodes.address, plan.repository, count) as endpoint:
                known = known or _alone(endpoint, plan)
                nodes.limit(plan.share)
                _send(endpoint, plan, plan.seconds / 2)  # the line fills, all has run once
                runs.append({"engines": count, **_run(endpoint, plan, known)})
                nodes.limit(None)
    return {
        "cores": CORES,
        "share_of_a_core": plan.share,
        "clients": plan.clients,
        "steps": [*STEPS],
        "seconds": plan.seconds,
        "runs": runs,
    }


def _run(endpoint: Endpoint, plan: Plan, known: dict[int, str]) -> dict[str, Any]:
    begin, before, machine = time.perf_counter(), _seconds_by_part(), _busy_seconds()
    answers = _send(endpoint, plan, plan.seconds)
    spent, after = time.perf_counter() - begin, _seconds_by_part()
    busy = _busy_seconds() - machine
    point = summarise(answers, known, SLO_MS, clients=plan.clients)
    if point.answered < point.requests or point.wrong:
        raise BenchError(
            f"{point.requests - point.answered} of {point.requests} requests failed, "
            f"{point.wrong} pictures were wrong: {'; '.join(point.errors)}"
        )
    used = {part: after[part] - before[part] for part in PARTS}
    return {
        "seconds": round(spent, 2),
        "pictures": point.answered,
        "pictures_per_second": point.throughput,
        "latency_ms": point.latency_ms,
        "cpu_seconds": {part: round(seconds, 2) for part, seconds in used.items()},
        "cores_busy": round(sum(used.values()) / spent / CORES, 3),
        # With what others did on this machine.
        "machine_busy_seconds": round(busy, 2),
    }


def _alone(endpoint: Endpoint, plan: Plan) -> dict[int, str]:
    answers = run_thin(endpoint, Load(clients=1), plan.body, iter(range(KNOWN)))
    return {answer.request: answer.picture for answer in answers if answer.picture}


def _send(endpoint: Endpoint, plan: Plan, seconds: float) -> list[Answer]:
    numbers = itertools.cycle(range(KNOWN))
    return run_thin(endpoint, Load(clients=plan.clients), plan.body, numbers, seconds)


def _seconds_by_part() -> dict[str, float]:
    """CPU time so far of the living processes that are the cluster's, and of this one."""
    spent: dict[str, float] = defaultdict(float)
    for process in psutil.process_iter(["pid", "name", "cmdline", "cpu_times"]):
        times, words = process.info["cpu_times"], process.info["cmdline"]
        if times is not None and words:
            part = _part(process.info["pid"], process.info["name"], " ".join(words))
            spent[part] += times.user + times.system
    return spent


def _part(pid: int, name: str, command: str) -> str:
    if pid == os.getpid():
        return "client"
    if name.startswith(ENGINE) or name == "tritonserver":
        return "engines"
    if "ServeReplica" in command and "gateway" in command:
        return "gateway"
    if any(word in command for word in ("ray::", "raylet", "gcs_server", "/ray/", "--ray")):
        return "ray"
    return "other"


def _busy_seconds() -> float:
    """Of all cores of the machine, whoever used them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _table(result: dict[str, Any]) -> Table:
    rounds = len(result["runs"]) // len({run["engines"] for run in result["runs"]})
    table = Table(
        title=f"{result['clients']} clients, {result['cores']} cores, "
        f"{result['share_of_a_core']:g} of a core a node, means of {rounds} rounds"
    )
    for name in ("engines", "pictures/s", "cores busy", *(f"{p}, CPU s" for p in PARTS)):
        table.add_column(name, justify="right")
    for count in sorted({run["engines"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["engines"] == count]
        table.add_row(
            str(count),
            f"{mean(run['pictures_per_second'] for run in runs):.1f}",
            f"{mean(run['cores_busy'] for run in runs):.0%}",
            *(f"{mean(run['cpu_seconds'][part] for run in runs):.1f}" for part in PARTS),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
