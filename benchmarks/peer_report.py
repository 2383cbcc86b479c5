"""What ``cdm-bench peers`` prints, draws and keeps."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chart import Chart, save_charts
from benchmarks.errors import BenchError
from benchmarks.peer_rounds import (
    CLIENTS,
    FASTAPI,
    OURS,
    SETTINGS,
    Plan,
    best,
    ratios,
    rounds,
    spread,
    sweep,
    tried_json,
)
from benchmarks.record import write_result

BARS = {
    f"throughput / {FASTAPI}": ("at least", 5.0),
    "throughput / best batching peer": ("at least", 1.6),
    f"p50 / {FASTAPI}": ("at most", 0.4),
}
PACKAGES = ("litserve", "ray", "fastapi", "transformers")


def peers(arguments: argparse.Namespace, console: Console) -> int:
    """Sweep, measure in rounds, and keep after each round what there is."""
    plan = _plan(arguments)
    # Whatever ends us ends the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tried, results = [], []
    with console.status("") as status:
        if not arguments.quick:
            for name, setting, run in sweep(plan, status.update):
                tried.append((name, setting, run))
                console.print(f"{name}, {setting}: {run['images_per_second']:.1f} images/s")
        settings = best(tried) or {name: all_of[0] for name, all_of in SETTINGS.items()}
        kept: dict[str, Any] = {
            "student": plan.student.name,
            "seconds": [plan.alone_seconds, plan.busy_seconds],
            "sweep": tried_json(tried),
            "settings": {name: asdict(setting) for name, setting in settings.items()},
        }
        for each in rounds(plan, settings, status.update):
            results.append(each)
            kept |= {"ratios": _judged(results), "rounds": results}
            write_result(arguments.out, kept, PACKAGES)
    save_charts(_charts(results), arguments.out.with_suffix(".png"))
    console.print(_servers(results, {name: str(s) for name, s in settings.items()}))
    console.print(_ratios(kept["ratios"]))
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    missing = [name for name in ("litserve", "ray", "diffusers") if find_spec(name) is None]
    if missing:
        raise BenchError(f"{missing[0]} is missing: pip install 'cdm-serve[peers]'")
    _check_export(arguments.repository, arguments.student, "")
    if arguments.int8 is not None:
        _check_export(arguments.int8, arguments.student, " --precision int8 --calibration PROMPTS")
    if not (arguments.student / "model_index.json").exists():
        raise BenchError(f"{arguments.student} is no diffusers folder; expected the student's")
    where = (arguments.student, arguments.repository, arguments.int8)
    if arguments.quick:
        return Plan(*where, 2, 1.0, 2.0)
    return Plan(*where, arguments.rounds)


def _check_export(repository: Path, student: Path, options: str) -> None:
    """See that a repository holds exports, and with ``options`` that they are in int8."""
    try:
        found = [
            json.loads(path.read_text())["precision"] for path in repository.glob("*/1/export.json")
        ]
    except (ValueError, LookupError, TypeError):  # a damaged one
        found = []
    if not found or (options and set(found) != {"int8"}):
        raise BenchError(
            f"{repository} holds no {'int8 ' if options else ''}export: "
            f"cdm-export {student} --to onnx{options} --out {repository}"
        )


def _judged(results: list[Any]) -> dict[str, Any]:
    judged: dict[str, Any] = {}
    for name, ratio in ratios(results).items():
        judged[name] = dict(ratio)
        if name in BARS:
            sense, bar = BARS[name]
            holds = ratio["median"] >= bar if sense == "at least" else ratio["median"] <= bar
            judged[name] |= {"bar": f"{sense} {bar:g}", "holds": holds}
    return judged


def _servers(results: list[Any], settings: dict[str, str]) -> Table:
    table = Table(title=f"Medians of {len(results)} rounds")
    for name in ("", "setting", "images/s, 16", "p50 ms, 1", "p50 ms, 16", "CPU ms a picture"):
        table.add_column(name, justify="left" if name in ("", "setting") else "right")
    one, many = (str(clients) for clients in CLIENTS)
    for name in results[0]:

        def median(clients: str, *keys: str, server: str = name) -> float:
            values = []
            for each in results:
                value: Any = each[server][clients]
                for key in keys:
                    value = value[key]
                values.append(value)
            return spread(values)["median"]

        table.add_row(
            name,
            settings.get(name, ""),
            f"{median(many, 'images_per_second'):.1f}",
            f"{median(one, 'milliseconds', 'p50'):.1f}",
            f"{median(many, 'milliseconds', 'p50'):.1f}",
            f"{median(many, 'server_cpu_ms'):.1f}",
        )
    client = spread([e[n][many]["client_cpu_ms"] for e in results for n in e])["median"]
    table.caption = f"The client takes {client:.2f} ms of a core for a request."
    return table


def _ratios(judged: dict[str, Any]) -> Table:
    table = Table(title=f"{OURS} over the others, by round")
    for name in ("", "median", "range", "bar", ""):
        table.add_column(name, justify="right" if name in ("median", "range") else "left")
    for name, ratio in judged.items():
        held = {True: "holds", False: "[red]missed[/]", None: ""}[ratio.get("holds")]
        least_most = f"{ratio['low']:.2f} - {ratio['high']:.2f}"
        table.add_row(name, f"{ratio['median']:.2f}", least_most, ratio.get("bar", ""), held)
    return table


def _charts(results: list[Any]) -> list[Chart]:
    """Throughput at 16 clients and p50 of one, by round."""
    one, many = (str(clients) for clients in CLIENTS)
    places = [str(number + 1) for number in range(len(results))]
    names = sorted(results[0], key=lambda name: name != OURS)
    throughput = {n: [each[n][many]["images_per_second"] for each in results] for n in names}
    latency = {n: [each[n][one]["milliseconds"]["p50"] for each in results] for n in names}
    return [
        Chart(title, places, lines, 0.0, 1.1 * max(max(line) for line in lines.values()))
        for title, lines in (
            ("images/s by round, 16 clients", throughput),
            ("p50 ms by round, 1 client", latency),
        )
    ]
