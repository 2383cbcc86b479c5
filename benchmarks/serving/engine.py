"""``cdm-bench engine``: what each stage costs in every runtime, without a server.

The runtimes take turns, point by point, in rounds.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chart import Chart, save_charts
from benchmarks.errors import BenchError, picked
from benchmarks.figures import in_turn, spread
from benchmarks.progress import progress
from benchmarks.record import Record
from benchmarks.serving.exported import Exported, find_export
from benchmarks.serving.stages import OURS, TORCH, runtime_stages
from benchmarks.serving.worker import Answerer, worker
from cdm_serve.errors import StartError

STAGES = ("text", "step", "decode", "tiny_decode", "picture")
Points = list[dict[str, Any]]


@dataclass(frozen=True)
class EnginePlan:
    """``seconds`` is how long each point is repeated in each of the ``rounds``."""

    exported: Exported
    student: Path
    runtimes: tuple[str, ...]
    sizes: tuple[str, ...]
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    rounds: int = 3
    seconds: float = 0.1

    @property
    def points(self) -> list[tuple[str, str, int]]:
        """Stage, size and batch of all that is measured."""
        tiny = "tiny" in self.exported.manifest.decoders
        return [
            (stage, size, batch)
            for size in self.sizes
            for stage in STAGES
            if tiny or stage != "tiny_decode"
            for batch in self.batches
            if stage != "text" or size == self.sizes[0]
        ]


def engine(arguments: argparse.Namespace, console: Console) -> int:
    """Measure, print and keep."""
    record = Record(arguments.out, "engine")
    exported = find_export(arguments.repository, arguments.model)
    quick: dict[str, Any] = {"batches": (1, 4), "rounds": 2, "seconds": 0.01}
    plan = EnginePlan(
        exported,
        arguments.student,
        picked("--runtimes", arguments.runtimes, (*TORCH, *OURS)),
        tuple(arguments.sizes or exported.manifest.sizes),
        **(quick if arguments.quick else {"rounds": arguments.rounds}),
    )
    with progress("points", plan.rounds * len(plan.points), console) as advance:
        result = measure_engine(plan, advance)
    for name, reason in result["absent"].items():
        console.print(f"without {name}: {reason}", soft_wrap=True, highlight=False)
    for size in plan.sizes:
        console.print(_stages_table(size, result["points"]))
    record.write(result)
    save_charts([_curve(size, result["points"], plan.batches) for size in plan.sizes], record.chart)
    console.print(f"kept in {record.path}")
    return 0


def measure_engine(plan: EnginePlan, on_point: Callable[[], None]) -> dict[str, Any]:
    """Milliseconds by runtime, stage, size and batch.

    Raises:
        BenchError: no runtime is there, or one ended.
    """
    with ExitStack() as stack:
        workers, absent = _start(plan, stack)
        samples: dict[tuple[str, tuple[str, str, int]], list[dict[str, float]]] = {}
        for number in range(plan.rounds):
            for stage, size, batch in plan.points:
                order = {"stage": stage, "size": size, "batch": batch, "seconds": plan.seconds}
                for name in in_turn([*workers], number):
                    if stage == "tiny_decode" and name in TORCH:  # which has the student alone
                        continue
                    found = workers[name](order)
                    samples.setdefault((name, (stage, size, batch)), []).append(found)
                on_point()
    return {
        "model": plan.exported.folder.name,
        "steps": plan.exported.manifest.default_steps,
        "rounds": plan.rounds,
        "absent": absent,
        "points": [
            {
                "runtime": name,
                "stage": stage,
                "size": size,
                "batch": batch,
                **{key: spread([each[key] for each in found]) for key in found[0]},
            }
            for (name, (stage, size, batch)), found in samples.items()
        ],
    }


def _start(plan: EnginePlan, stack: ExitStack) -> tuple[dict[str, Answerer], dict[str, str]]:
    """The runtimes that are there, and why the others are not."""
    workers, absent = {}, {}
    for name in plan.runtimes:
        process = worker(runtime_stages, name, plan.exported.folder, plan.student)
        try:
            workers[name] = stack.enter_context(process)
        except (StartError, ModuleNotFoundError) as error:
            absent[name] = str(error)
    if not workers:
        raise BenchError(f"no runtime is there: {absent}")
    return workers, absent


def _stages_table(size: str, points: Points) -> Table:
    """Milliseconds of one execution by batch; of pictures the rate beside it."""
    here = [point for point in points if point["size"] == size]
    batches = sorted({point["batch"] for point in here})
    table = Table(title=f"{size}: ms of an execution by batch")
    for name in ("stage", "runtime", *(str(batch) for batch in batches), "images/s"):
        table.add_column(name, justify="left" if name in ("stage", "runtime") else "right")
    for stage in dict.fromkeys(point["stage"] for point in here):
        of_stage = [point for point in here if point["stage"] == stage]
        for runtime in dict.fromkeys(point["runtime"] for point in of_stage):
            row = [point for point in of_stage if point["runtime"] == runtime]
            spent = [point["milliseconds"]["median"] for point in row]
            rate = max(1e3 * point["batch"] / ms for point, ms in zip(row, spent, strict=True))
            cells = (*(f"{ms:.1f}" for ms in spent), f"{rate:.1f}" if stage == "picture" else "")
            table.add_row(stage, runtime, *cells)
        table.add_section()
    return table


def _curve(size: str, points: Points, batches: tuple[int, ...]) -> Chart:
    lines: dict[str, list[float]] = {}
    for point in points:
        if (point["stage"], point["size"]) == ("picture", size):
            rate = 1e3 * point["batch"] / point["milliseconds"]["median"]
            lines.setdefault(point["runtime"], []).append(rate)
    return Chart(f"images/s by batch, {size}", [*map(str, batches)], lines)
