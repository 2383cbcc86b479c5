"""What each stage costs in every runtime, and how far that is from what the machine could do.

The runtimes take turns, point by point, in rounds. The floor of a stage is the longer of two times:
its operations at the rate of the largest square product that the same runtime reached, and its
weights at the measured bandwidth of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.exported import Exported
from benchmarks.stages import RUNTIMES, TORCH
from benchmarks.tally import spread
from benchmarks.worker import Worker, worker

STAGES = ("text", "step", "decode", "picture")
BATCHES = (1, 2, 4, 8, 16)
HALF = ("bf16", "cuda", "tensorrt")  # of the name, where weights take two bytes


@dataclass(frozen=True)
class EnginePlan:
    """``seconds`` is how long each point is repeated in each of the ``rounds``."""

    exported: Exported
    student: Path
    runtimes: tuple[str, ...] = RUNTIMES
    sizes: tuple[str, ...] = ()
    batches: tuple[int, ...] = BATCHES
    rounds: int = 3
    seconds: float = 0.1

    @property
    def points(self) -> list[tuple[str, str, int]]:
        """Stage, size and batch of all that is measured."""
        sizes = self.sizes or self.exported.manifest.sizes
        return [
            (stage, size, batch)
            for size in sizes
            for stage in STAGES
            for batch in self.batches
            if stage != "text" or size == sizes[0]
        ]

    @property
    def runs(self) -> int:
        """Points in all rounds, whatever the number of runtimes."""
        return self.rounds * len(self.points)


def measure_engine(plan: EnginePlan, on_run: Callable[[], None]) -> dict[str, Any]:
    """Milliseconds by runtime, stage, size and batch; and the floors.

    Raises:
        BenchError: no runtime is there, or one ended.
    """
    with ExitStack() as stack:
        workers, absent = _start(plan, stack)
        samples: dict[tuple[str, tuple[str, str, int]], list[dict[str, float]]] = {}
        for number in range(plan.rounds):
            names = list(workers)
            first = number % len(names)
            for stage, size, batch in plan.points:
                order = {"stage": stage, "size": size, "batch": batch, "seconds": plan.seconds}
                for name in (*names[first:], *names[:first]):
                    found = workers[name].ask(order)
                    samples.setdefault((name, (stage, size, batch)), []).append(found)
                on_run()
        limits = _limits(plan, workers)
        encoding = _encoding(plan, workers)
    points = [
        {
            "runtime": name,
            "stage": stage,
            "size": size,
            "batch": batch,
            **{key: spread([each[key] for each in found]) for key in found[0]},
        }
        for (name, (stage, size, batch)), found in samples.items()
    ]
    for point in points:
        _add_floor(point, limits, plan.exported.manifest.default_steps)
    return {
        "model": plan.exported.folder.name,
        "steps": plan.exported.manifest.default_steps,
        "rounds": plan.rounds,
        "absent": absent,
        "limits": limits,
        "encoding": encoding,
        "points": points,
    }


def _start(plan: EnginePlan, stack: ExitStack) -> tuple[dict[str, Worker], dict[str, str]]:
    """The runtimes that are there, and why the others are not."""
    where = plan.exported.folder
    arguments = str(where.parent), where.name, str(plan.student)
    workers, absent = {}, {}
    for name in plan.runtimes:
        process = stack.enter_context(worker("benchmarks.stages", name, *arguments))
        if "absent" in process.hello:
            absent[name] = process.hello["absent"]
        else:
            workers[name] = process
    if not workers:
        raise BenchError(f"no runtime is there: {absent}")
    return workers, absent


def _limits(plan: EnginePlan, workers: dict[str, Worker]) -> dict[str, Any]:
    """Operations and parameters of the stages, as torch counts them; rates of each runtime."""
    torch = next((workers[name] for name in TORCH if name in workers), None)
    if torch is None:
        return {}
    sizes = plan.sizes or plan.exported.manifest.sizes
    return {
        "stages": {size: torch.ask({"stage": "count", "size": size}) for size in sizes},
        **torch.ask({"stage": "bandwidth", "seconds": plan.seconds}),
        "gemm": {
            name: each.ask({"stage": "gemm", "seconds": plan.seconds})
            for name, each in workers.items()
        },
    }


def _encoding(plan: EnginePlan, workers: dict[str, Worker]) -> dict[str, Any]:
    """Pixels to files, which is the same code whatever made the pixels."""
    process = next(iter(workers.values()))
    sizes = plan.sizes or plan.exported.manifest.sizes
    return {
        size: process.ask({"stage": "encode", "size": size, "seconds": plan.seconds})
        for size in sizes
    }


def _add_floor(point: dict[str, Any], limits: dict[str, Any], steps: int) -> None:
    """``floor_milliseconds``, where it is known."""
    if not limits:
        return
    stages = limits["stages"][point["size"]]
    times = {"text": 1, "step": steps, "decode": 1}
    wanted = times if point["stage"] == "picture" else {point["stage"]: 1}
    rate = limits["gemm"][point["runtime"]]["flops_per_second"]
    size = 2 if any(word in point["runtime"] for word in HALF) else 4
    floor = sum(
        count
        * max(
            point["batch"] * stages[stage]["flops"] / rate,
            size * stages[stage]["parameters"] / limits["bytes_per_second"],
        )
        for stage, count in wanted.items()
    )
    point["floor_milliseconds"] = round(1e3 * floor, 4)
