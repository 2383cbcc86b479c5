"""What ``cdm-bench overhead`` and ``engine`` do; imported when one of them runs."""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.chart import Chart, save_charts
from benchmarks.engine import EnginePlan, measure_engine
from benchmarks.exported import find_export
from benchmarks.overhead import LOADS, Overhead, Round, measure_overhead
from benchmarks.record import write_result

PROCESSES = ("engine", "triton", "gateway", "client")
PACKAGES = ("aiohttp", "fastapi", "grpcio", "nvidia-pytriton", "tritonclient", "uvicorn")


def overhead(arguments: argparse.Namespace, console: Console) -> int:
    """The whole path against the bare engine."""
    plan = Overhead(
        find_export(arguments.repository, arguments.model),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        loads=tuple(arguments.only),
    )
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=plan.runs)
        result = measure_overhead(plan, lambda: progress.advance(task))
    for load in plan.loads:
        console.print(_load_table(load, result["rounds"][load]))
        console.print(_cpu_table(load, result["rounds"][load]))
    console.print(_bars_table(result["bars"]))
    if arguments.out:
        write_result(arguments.out, result, PACKAGES)
    return 0


def _load_table(load: str, rounds: list[Round]) -> Table:
    """Medians; the spread is in the file, and in the ratios."""
    table = Table(title=f"{load}: medians of {len(rounds)} rounds")
    steps = sorted({count for each in rounds for run in each.values() for count in run["by_steps"]})
    by_steps = steps if len(steps) > 1 else []
    table.add_column("")
    for name in ("images/s", "p50 ms", "p99 ms", *(f"p50 of {count}" for count in by_steps)):
        table.add_column(name, justify="right")
    for name in LOADS[load]:
        runs = [each[name] for each in rounds]
        values = [
            [run["images_per_second"] for run in runs],
            [run["milliseconds"]["p50"] for run in runs],
            [run["milliseconds"]["p99"] for run in runs],
            *(
                [run["by_steps"][count]["p50"] for run in runs if count in run["by_steps"]]
                for count in by_steps
            ),
        ]
        table.add_row(name, *(f"{median(each):.1f}" if each else "" for each in values))
    return table


def _cpu_table(load: str, rounds: list[Round]) -> Table:
    table = Table(title=f"{load}: CPU milliseconds an image, of each process")
    table.add_column("")
    for part in PROCESSES:
        table.add_column(part, justify="right")
    for name in LOADS[load]:
        spent = [each[name]["cpu_milliseconds"] for each in rounds]
        cells = [[parts[part] for parts in spent if part in parts] for part in PROCESSES]
        table.add_row(name, *(f"{median(each):.2f}" if each else "" for each in cells))
    return table


def _bars_table(bars: dict[str, Any]) -> Table:
    table = Table(title="ratios to the bare engine")
    for name in ("", "ratio", "bar", ""):
        table.add_column(name, justify="right" if name else "left")
    for name, bar in bars.items():
        ratio = bar["ratio"]
        table.add_row(
            name,
            f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})",
            f"{'at least' if bar['at_least'] else 'at most'} {bar['bar']:g}",
            "[green]holds[/]" if bar["holds"] else "[red]missed[/]",
        )
    return table


def engine(arguments: argparse.Namespace, console: Console) -> int:
    """Every stage in every runtime."""
    quick: dict[str, Any] = {"batches": (1, 4), "rounds": 2, "seconds": 0.01}
    plan = EnginePlan(
        find_export(arguments.repository, arguments.model),
        arguments.student,
        runtimes=tuple(arguments.runtimes),
        sizes=tuple(arguments.sizes),
        **(quick if arguments.quick else {"rounds": arguments.rounds}),
    )
    columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=plan.runs)
        result = measure_engine(plan, lambda: progress.advance(task))
    for name, reason in result["absent"].items():
        console.print(f"without {name}: {reason}", soft_wrap=True, highlight=False)
    sizes = list(result["encoding"])
    for size in sizes:
        console.print(_stages_table(size, result["points"]))
    console.print(_encoding_table(result["encoding"]))
    if arguments.out:
        write_result(arguments.out, result, PACKAGES)
        charts = [_curve(size, result["points"], plan.batches) for size in sizes]
        save_charts(charts, arguments.out.with_suffix(".png"))
    return 0


def _stages_table(size: str, points: list[dict[str, Any]]) -> Table:
    """Milliseconds of one execution by batch; of pictures the rate beside it."""
    here = [point for point in points if point["size"] == size]
    batches = sorted({point["batch"] for point in here})
    table = Table(title=f"{size}: ms of an execution by batch, in brackets times its floor")
    for name in ("stage", "runtime", *(str(batch) for batch in batches)):
        table.add_column(name, justify="right" if name.isdecimal() else "left")
    table.add_column("images/s")
    for stage in dict.fromkeys(point["stage"] for point in here):
        of_stage = [point for point in here if point["stage"] == stage]
        for runtime in dict.fromkeys(point["runtime"] for point in of_stage):
            row = [point for point in of_stage if point["runtime"] == runtime]
            best = max(point["batch"] / point["milliseconds"]["median"] for point in row)
            rate = f"{1e3 * best:.1f}" if stage == "picture" else ""
            table.add_row(stage, runtime, *map(_cell, row), rate)
        table.add_section()
    return table


def _cell(point: dict[str, Any]) -> str:
    spent, floor = point["milliseconds"]["median"], point.get("floor_milliseconds")
    return f"{spent:.1f}" + (f" ({spent / floor:.1f})" if floor else "")


def _encoding_table(encoding: dict[str, Any]) -> Table:
    table = Table(title="pixels to a file")
    for name in ("size", "format", "ms", "CPU ms", "bytes"):
        table.add_column(name, justify="right")
    for size, formats in encoding.items():
        for name, found in formats.items():
            spent = (f"{found[key]:.2f}" for key in ("milliseconds", "cpu_milliseconds"))
            table.add_row(size, name, *spent, str(found["bytes"]))
    return table


def _curve(size: str, points: list[dict[str, Any]], batches: tuple[int, ...]) -> Chart:
    pictures = [p for p in points if (p["stage"], p["size"]) == ("picture", size)]
    lines: dict[str, list[float]] = {}
    for point in pictures:
        rate = 1e3 * point["batch"] / point["milliseconds"]["median"]
        lines.setdefault(point["runtime"], []).append(rate)
    high = max(value for line in lines.values() for value in line)
    return Chart(f"images/s by batch, {size}", [*map(str, batches)], lines, 0.0, 1.1 * high)
