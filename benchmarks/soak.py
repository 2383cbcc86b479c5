"""What ``cdm-bench soak`` does: the server under clients that leave, too much work, and kills."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.exported import find_export
from benchmarks.kills import VICTIMS, run_kills
from benchmarks.leaving import run_leaving
from benchmarks.overload import run_overload
from benchmarks.record import write_result

PACKAGES = ("aiohttp", "fastapi", "grpcio", "nvidia-pytriton", "tritonclient", "uvicorn")


def soak(arguments: argparse.Namespace, console: Console) -> int:
    """Run the parts that were asked for; each starts a server of its own."""
    exported = find_export(arguments.repository, arguments.model)
    requests, seconds, rounds = arguments.requests, 60 * arguments.minutes, arguments.kills
    parts: dict[str, tuple[int, Callable[[Callable[[], None]], dict[str, Any]]]] = {
        "leaving": (
            requests,
            lambda step: run_leaving(exported, requests, arguments.leaving, step),
        ),
        "overload": (
            round(seconds),
            lambda step: run_overload(exported, arguments.times, seconds, step),
        ),
        "kills": (rounds * len(VICTIMS), lambda step: run_kills(exported, rounds, step)),
    }
    result = {}
    for name in arguments.only:
        total, run = parts[name]
        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task("", total=total)
            result[name] = run(partial(progress.advance, progress.task_ids[0]))
        console.print(_table(name, result[name]))
        if arguments.out:
            write_result(arguments.out, result, PACKAGES)
    return 0


def _table(name: str, result: dict[str, Any]) -> Table:
    table = Table("", "", title=name, show_header=False)
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{part} {each}" for part, each in value.items())
        if key == "growth":
            key = "growth of memory"
        if key != "memory_mib":
            table.add_row(key.replace("_", " "), str(value))
    return table
