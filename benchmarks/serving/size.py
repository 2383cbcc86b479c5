"""``cdm-bench size``: a model of real size all the way, on the machine that one has.

Random weights are written, exported, compared, drawn by diffusers and served. Each part runs in
processes of its own, whose memory is watched together.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.gpu.shapes import SHAPES, write_pipeline
from benchmarks.load.client import Load, run_load
from benchmarks.record import Record
from benchmarks.serving.exported import Exported, find_export
from benchmarks.serving.servers import last_line, served
from benchmarks.serving.worker import in_a_process
from distill.adapters.loading import model_index
from distill.adapters.registry import adapter_class
from export.compare import psnr_db
from export.precision import PRECISIONS, float32
from export.request import parse_sizes
from export.student import load_student

PROMPT, SEED = "a fox in the snow", 7
_POLL = 0.2  # seconds
_ROOT = Path(__file__).parents[2]
Result = dict[str, Any]
Pixels = NDArray[np.uint8]


def size(arguments: argparse.Namespace, console: Console) -> int:
    """Go the whole way, print and keep."""
    sizes, name = arguments.sizes, arguments.student
    kind = [name.removesuffix("Pipeline").lower()] if name in SHAPES else []
    more = [*["slice"] * arguments.slice, *filter(None, [arguments.precision])]
    record = Record(arguments.out, "-".join(["size", *kind, *more]))
    result: Result = {"student": name, "random": name in SHAPES, "sizes": sizes, "parts": {}}
    with tempfile.TemporaryDirectory(prefix="cdm-bench-", dir=arguments.folder) as temporary:
        folder = Path(temporary) / "student" if name in SHAPES else Path(name)

        def part(title: str, run: Callable[[], Result]) -> Any:
            with console.status(title), _watched() as found:
                found |= run()
            result["parts"][title] = found
            console.print(f"{title}: {found['seconds']} s, {found['peak_gb']} GB", highlight=False)
            record.write(result)

        if name in SHAPES:
            result["slice"] = arguments.slice
            part(
                "write random weights", lambda: in_a_process(_write, name, folder, arguments.slice)
            )
        elif not folder.is_dir():
            raise BenchError(f"{name} is no folder, and no name: {', '.join(SHAPES)}")
        half = adapter_class(model_index(str(folder))["_class_name"]).half
        said = next(p.name for p in PRECISIONS.values() if p.dtype == half)
        result["precision"] = arguments.precision or said
        repository = Path(temporary) / "repository"
        part("export", lambda: _export(folder, repository, result["precision"], sizes))
        drawn: dict[str, Pixels] = {}

        def draw() -> Result:
            found, pictures = in_a_process(_draw, folder, half, sizes)
            drawn.update(pictures)
            return dict(found)

        part("diffusers", draw)
        part("server", lambda: _serve(find_export(repository, None), drawn))
    for picture, figures in result["parts"]["server"]["pictures"].items():
        said = ", ".join(f"{key} {value}" for key, value in figures.items())
        console.print(f"  {picture}: {said}", highlight=False)
    console.print(f"kept in {record.path}")
    return 0


@contextmanager
def _watched() -> Iterator[Result]:
    """Seconds, and the most memory that our child processes had at once, all of them together."""
    ours, done, peak, found = psutil.Process(), threading.Event(), 0, Result()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_POLL):
            used = 0
            for process in ours.children(recursive=True):
                with suppress(psutil.Error):
                    used += process.memory_info().rss
            peak = max(peak, used)

    thread, begin = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    found |= {"seconds": _seconds(begin), "peak_gb": round(peak / 1e9, 2)}


def _write(name: str, folder: Path, sliced: bool) -> Result:
    write_pipeline(name, folder, adapter_class(SHAPES[name]["pipeline"]).half, sliced=sliced)
    return {"bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())}


def _export(folder: Path, repository: Path, precision: str, sizes: list[str]) -> Result:
    command = [sys.executable, "-m", "export.cli", str(folder), "--to", "onnx"]
    command += ["--out", str(repository), "--precision", precision, "--sizes", ",".join(sizes)]
    # On a few cores two samples take twice as long as one.
    command += ["--max-batch", "1", "--verify", "quick"]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(_ROOT)}
    )
    if ended.returncode:
        raise BenchError(f"cdm-export failed: {last_line(ended.stderr or ended.stdout)}")
    (path,) = repository.glob("*/1/export.json")
    stamped = json.loads(path.read_text(encoding="utf-8"))
    verification = stamped["verification"]
    return {
        "runtimes": stamped["runtimes"],
        "verification": {key: verification[key] for key in ("level", "pictures")},
    }


def _draw(folder: Path, half: torch.dtype, sizes: list[str]) -> tuple[Result, dict[str, Pixels]]:
    """Diffusers' own pictures, in float32 on the weights as they are stored."""
    student = load_student(folder, dtype=half)
    networks, steps = student.adapter.networks, student.contract.steps
    weights = {n: sum(p.numel() for p in each.parameters()) for n, each in networks.items()}
    pictures, seconds = {}, {}
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(float32(network))
        for each in parse_sizes(",".join(sizes)):
            begin, generator = time.perf_counter(), torch.Generator("cpu").manual_seed(SEED)
            where = (each.height, each.width, generator, student.contract.of(steps))
            pictures[str(each)] = np.asarray(student.adapter.picture(PROMPT, steps, *where))
            seconds[str(each)] = _seconds(begin)
    return {"weights": weights, "steps": steps, "picture_seconds": seconds}, pictures


def _serve(exported: Exported, drawn: dict[str, Pixels]) -> Result:
    """The real server: its start to the first picture, then of each size one and one more."""
    begin, pictures = time.perf_counter(), {}
    with served(exported) as server:
        start = _seconds(begin)
        idle = server.memory_mib()
        for picture, expected in drawn.items():
            bodies = partial(_body, picture)
            first, again = run_load(server.url, Load(clients=1), bodies, iter((0, 1)))
            if first.picture is None or again.picture is None:
                raise BenchError(f"{server.name} answered {first.problem} and {again.problem}")
            receipt = json.loads(again.content)["data"][0]["receipt"]
            spent = {k: round(v / 1e3, 2) for k, v in receipt["milliseconds"].items()}
            pixels = np.asarray(Image.open(io.BytesIO(first.picture)))
            pictures[picture] = {
                "seconds": round(again.latency, 2),
                "first_seconds": round(first.latency, 2),
                "step_seconds": round(spent["steps"] / receipt["steps"], 2),
                "decode_seconds": spent["decode"],
                "psnr_db": psnr_db(pixels, expected),
                "same_again": first.picture == again.picture,
            }
    memory = {name: round(mib * 2**20 / 1e9, 2) for name, mib in idle.items()}
    return {"start_seconds": start, "idle_gb": memory, "pictures": pictures}


def _body(picture: str, _: int) -> bytes:
    return json.dumps({"prompt": PROMPT, "seed": SEED, "size": picture}).encode()


def _seconds(begin: float) -> float:
    return round(time.perf_counter() - begin, 1)
