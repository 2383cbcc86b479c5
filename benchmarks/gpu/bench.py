"""``cdm-bench gpu``: a student on a GPU, by torch, by our engine, and one update of it.

A name of ``shapes.toml`` is that model's real size with random weights: no network is needed. Each
part is a process of its own, so that nothing of it is left on the GPU, and none ends another. The
result is written anew after every part; a part that could not run says why, and one that was cut
short, since the time was up, has what it found until then.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.errors import BenchError, picked
from benchmarks.gpu.meter import Result, reason
from benchmarks.gpu.parts import PARTS, Bench
from benchmarks.gpu.shapes import SHAPES
from benchmarks.record import Record, write_whole

# Kept for each part that is still to come, in seconds.
RESERVED = 20.0
PACKAGES = ("onnxruntime-gpu", "cupy-cuda13x", "tensorrt")


def gpu(arguments: argparse.Namespace, console: Console) -> int:
    """Run the parts."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise BenchError("torch sees no GPU here; --device cpu goes the same way without one")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    end = time.monotonic() + 60 * arguments.minutes
    record = Record(arguments.out, "gpu", PACKAGES, gpu=name)
    shape = SHAPES.get(arguments.student)
    student = Path(arguments.student)
    if shape:
        arguments.sizes = arguments.sizes or shape["sizes"]
        arguments.recipe = arguments.recipe or shape.get("recipe")
        arguments.recipe = arguments.recipe and Path(arguments.recipe)
    elif not student.is_dir():
        raise BenchError(f"{student} is no folder, and no name: {', '.join(SHAPES)}")
    if not arguments.sizes:
        raise BenchError("--sizes: which pictures? WIDTHxHEIGHT")
    parts = list(picked("--only", arguments.only, PARTS))
    del arguments.run  # which another process cannot be given
    result: Result = {"student": arguments.student, "random": bool(shape), "parts": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shape:
            parts.insert(0, "weights")
            student = folder / "student"
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            begin, path = time.monotonic(), folder / f"{part}.json"
            run = partial(run_part, part, student, arguments)
            with console.status(part):
                found = alone(run, path, max(0.0, end - begin - RESERVED * left))
            found["took_seconds"] = round(time.monotonic() - begin, 1)
            result["parts"][part] = found
            said = found.get("absent", found.get("cut", "done"))
            console.print(f"{part}: {said}, {found['took_seconds']} s", highlight=False)
            record.write(result)
    console.print(f"kept in {record.path}")
    return 0


def alone(run: Callable[[Path], None], path: Path, seconds: float) -> Result:
    """What ``run`` writes into a JSON file, in a process of its own that has so much time."""
    process = get_context("spawn").Process(target=run, args=(path,), daemon=True)
    process.start()
    process.join(seconds)
    late = process.is_alive()
    process.kill()
    process.join()
    found: Result = json.loads(path.read_text()) if path.exists() else {}
    if late:
        found["cut" if found else "absent"] = f"the time was up after {seconds:.0f} s"
    elif process.exitcode or not found:
        found["cut" if found else "absent"] = f"its process ended with {process.exitcode}"
    return found


def run_part(part: str, student: Path, plan: argparse.Namespace, path: Path) -> None:
    """In a process of its own: what it finds, or why it could not, into ``path``."""
    found: Result = {}

    def note(more: Result) -> None:
        found.update(more)
        write_whole(path, json.dumps(found))

    bench = Bench(student, plan, path.parent, note)
    try:
        note((PARTS | {"weights": Bench.weights})[part](bench))
    except Exception as error:
        note({"cut" if found else "absent": reason(error)})
