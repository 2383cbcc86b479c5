"""What ``cdm-bench peers`` prints, draws and keeps."""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chart import Chart, save_charts
from benchmarks.errors import BenchError, picked
from benchmarks.figures import figure, spread, spread_text, table_of
from benchmarks.record import Record
from benchmarks.serving.exported import Exported, find_export
from benchmarks.serving.peers.entrants import (
    ALONE,
    OURS,
    PEERS,
    REQUIREMENTS,
    Entrant,
    also_ours,
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
    exported = find_export(arguments.repository, arguments.model)
    own = [ours(OURS, exported)]
    own += map(also_ours, arguments.also)
    if len({each.name for each in own}) < len(own):
        raise BenchError("--also: two of the exports have the same precision and decoder")
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder:
        models = Path(folder) / "openvino"
        with console.status("optimum-intel exports the student"):
            export_models(arguments.python, arguments.student, models)
        others = [peer(name, arguments.python, arguments.student, models) for name in names]
        _measure(arguments, console, record, exported, own, others)
    return 0


def _measure(
    arguments: argparse.Namespace,
    console: Console,
    record: Record,
    exported: Exported,
    own: list[Entrant],
    others: list[Entrant],
) -> None:
    count, seconds = (2, 1.0) if arguments.quick else (arguments.rounds, arguments.seconds)
    if arguments.quick:
        others = [replace(each, settings=each.settings[:1]) for each in others]
    tried, results, likeness = [], [], []
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
        names = [ALONE, *(entrant.name for entrant in own)]
        entrants = [*own, *others]
        turns = rounds(entrants, exported, settings, peak, count, seconds, status.update)
        for found, alike in turns:
            results.append(found)
            likeness.append(alike)
            kept |= {"ratios": ratios(results, names), "rounds": results, "psnr_db": likeness}
            record.write(kept)
    save_charts(_charts(results), record.chart)
    console.print(_servers(results))
    console.print(_arrivals(results))
    for other in others:
        of = settings[other.name]
        alone = "" if of.quick == of.busy else f"; for one client {of.quick}"
        console.print(f"{other.name}: {other.title}, {of.busy}{alone}", highlight=False)
    for name in likeness[-1]:
        least = min(each[name] for each in likeness)
        console.print(f"{name}: pictures {least:.1f} dB from {OURS}'s", highlight=False)
    for name, figures in kept["ratios"].items():
        console.print(_ratios(name, figures))
    console.print(f"kept in {record.path}")


_PERCENTILES = ("p50", "p95", "p99")


def _median(results: list[Any], server: str, load: str, *keys: str) -> str:
    found = (figure(each[server].get(load), keys) for each in results)
    values = [value for value in found if value is not None]
    return f"{spread(values)['median']:.1f}" if values else "-"


def _servers(results: list[Any]) -> Table:
    title = f"Medians of {len(results)} rounds; milliseconds but for images/s"
    columns = ("", "images/s, 16", "p50, 1", "p50, 4", "p50, 16", "2 steps of 8", "CPU")
    table = table_of(title, columns)
    for name in results[0]:
        table.add_row(
            name,
            _median(results, name, MANY, "images_per_second"),
            *(_median(results, name, load, "milliseconds", "p50") for load in (ONE, FOUR, MANY)),
            _median(results, name, MIXED, "by_steps", str(SHORT), "p50"),
            _median(results, name, MANY, "server_cpu_ms"),
        )
    return table


def _arrivals(results: list[Any]) -> Table:
    title = "Poisson arrivals, at shares of what the best peer can do, in ms"
    columns = (f"{share.removesuffix(' load')}: {p}" for share in SHARES for p in _PERCENTILES)
    table = table_of(title, ("", *columns))
    for name in results[0]:
        cells = (_median(results, name, s, "milliseconds", p) for s in SHARES for p in _PERCENTILES)
        table.add_row(name, *cells)
    return table


def _ratios(name: str, figures: dict[str, Any]) -> Table:
    table = table_of(f"{name} over the others, by round: median (range)", ("", *figures))
    for other in dict.fromkeys(other for each in figures.values() for other in each):
        found = (figures[title].get(other) for title in FIGURES)
        table.add_row(other, *(spread_text(ratio) if ratio else "-" for ratio in found))
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
