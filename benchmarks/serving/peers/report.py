"""What ``cdm-bench peers`` prints, draws and keeps."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chart import Chart, save_charts
from benchmarks.environments import environment
from benchmarks.errors import BenchError, picked
from benchmarks.figures import spread
from benchmarks.record import Record
from benchmarks.serving.exported import find_export
from benchmarks.serving.peers.entrants import (
    OURS,
    PEERS,
    REQUIREMENTS,
    WITHOUT,
    Entrant,
    export_models,
    ours,
    peer,
)
from benchmarks.serving.peers.rounds import (
    FIGURES,
    FOUR,
    MANY,
    MIXED,
    ONE,
    SHARES,
    SHORT,
    Best,
    best,
    capacity,
    ratios,
    rounds,
    sweep,
)


def peers(arguments: argparse.Namespace, console: Console) -> int:
    """Sweep, measure in rounds, and keep after each round what there is."""
    record = Record(arguments.out, "peers", ("fastapi", "tritonclient", "nvidia-pytriton"))
    if not (arguments.student / "model_index.json").exists():
        raise BenchError(f"{arguments.student} is no diffusers folder; expected the student's")
    names = picked("--only", arguments.only, PEERS)
    own = [ours(OURS, find_export(arguments.repository, arguments.model))]
    for repository in arguments.also:
        exported = find_export(repository, None)
        own.append(ours(f"{OURS}, {exported.folder.name}", exported))
    # Whatever ends us ends the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    python = arguments.python or environment("peers", REQUIREMENTS, console.print, WITHOUT)
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder:
        models = Path(folder) / "openvino"
        with console.status("optimum-intel exports the student"):
            export_models(python, arguments.student, models)
        others = [peer(name, python, arguments.student, models) for name in names]
        _measure(arguments, console, record, own, others)
    return 0


def _measure(
    arguments: argparse.Namespace,
    console: Console,
    record: Record,
    own: list[Entrant],
    others: list[Entrant],
) -> None:
    count, seconds = (2, 1.0) if arguments.quick else (arguments.rounds, arguments.seconds)
    if arguments.quick:
        others = [Entrant(each.name, each.settings[:1], each.start) for each in others]
    tried, results = [], []
    with console.status("") as status:
        for each in sweep(others, seconds, status.update):
            tried.append(each)
            console.print(
                f"{each.name}, {each.setting}: {each.many['images_per_second']:.1f} images/s, "
                f"alone {each.one['milliseconds']['p50']:.0f} ms",
                highlight=False,
            )
        settings, peak = best(tried), capacity(tried)
        kept: dict[str, Any] = {
            "student": arguments.student.name,
            "requirements": REQUIREMENTS.read_text(encoding="utf-8").splitlines()[2:],
            "seconds": seconds,
            "capacity_of_the_best_peer": peak,
            "sweep": [each.to_json() for each in tried],
            "settings": {name: asdict(setting) for name, setting in settings.items()},
        }
        names = [entrant.name for entrant in own]
        for found in rounds([*own, *others], settings, peak, count, seconds, status.update):
            results.append(found)
            kept |= {"ratios": ratios(results, names), "rounds": results}
            record.write(kept)
    save_charts(_charts(results), record.chart)
    console.print(_servers(results, settings))
    for name, figures in kept["ratios"].items():
        console.print(_ratios(name, figures))
    console.print(f"kept in {record.path}")


def _median(results: list[Any], server: str, load: str, *keys: str) -> str:
    values = []
    for each in results:
        value: Any = each[server].get(load)
        for key in keys:
            value = None if value is None else value[key]
        if value is not None:
            values.append(value)
    return f"{spread(values)['median']:.1f}" if values else "-"


def _servers(results: list[Any], settings: dict[str, Best]) -> Table:
    table = Table(title=f"Medians of {len(results)} rounds; milliseconds but for images/s")
    table.add_column("")
    for name in ("images/s, 16", "p50, 1", "p50, 4", "p50, 16", *SHARES, "2 steps", "CPU"):
        table.add_column(name, justify="right")
    for name in results[0]:
        table.add_row(
            name,
            _median(results, name, MANY, "images_per_second"),
            *(_median(results, name, load, "milliseconds", "p50") for load in (ONE, FOUR, MANY)),
            *(
                " / ".join(_median(results, name, load, "milliseconds", p) for p in _PARTS)
                for load in SHARES
            ),
            _median(results, name, MIXED, "by_steps", str(SHORT), "p50"),
            _median(results, name, MANY, "server_cpu_ms"),
        )
    lines = [f"Under Poisson load {' / '.join(_PARTS)}. CPU: of the server, a picture."]
    lines += [f"{name}: {of.busy}; for 1 client {of.quick}" for name, of in settings.items() if of]
    table.caption = "\n".join(lines)
    return table


_PARTS = ("p50", "p95", "p99")


def _ratios(name: str, figures: dict[str, Any]) -> Table:
    table = Table(title=f"{name} over the others, by round: median (range)")
    others = list(dict.fromkeys(other for each in figures.values() for other in each))
    for title in ("", *figures):
        table.add_column(title, justify="right" if title else "left")
    for other in others:
        cells = []
        for title in FIGURES:
            ratio = figures[title].get(other)
            cells.append(
                f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"
                if ratio
                else "-"
            )
        table.add_row(other, *cells)
    return table


def _charts(results: list[Any]) -> list[Chart]:
    """Throughput and p50 by clients."""
    loads = (ONE, FOUR, MANY)
    charts = []
    for title, keys in (
        ("images/s by clients", ("images_per_second",)),
        ("p50 ms by clients", ("milliseconds", "p50")),
    ):
        lines = {
            name: [float(_median(results, name, load, *keys)) for load in loads]
            for name in results[0]
        }
        charts.append(Chart(title, [load.partition(" ")[0] for load in loads], lines))
    return charts
