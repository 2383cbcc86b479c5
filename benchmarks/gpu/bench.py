"""``cdm-bench gpu``: a student on a GPU, by torch, by our engine, and one update of it.

A name of ``shapes.toml`` is that model's real size with random weights: no network is needed. The
result is written anew after every part, so that a run that is cut short keeps what it has; a part
that could not run says why.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.errors import BenchError, picked
from benchmarks.figures import percentiles
from benchmarks.gpu.shapes import SHAPES, write_pipeline
from benchmarks.record import Record
from benchmarks.serving.bare import closed_loop
from benchmarks.serving.exported import find_export
from benchmarks.serving.stages import OURS
from benchmarks.serving.torch_stages import TorchStages
from benchmarks.training.cost import update_seconds
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.scheduler import Scheduler
from cdm_serve.engine.warmup import measure
from distill.adapters import Adapter, load_adapter
from distill.adapters.loading import model_index
from distill.adapters.registry import adapter_class
from distill.distillation import trainer_of
from distill.parallel import Processes
from distill.recipe import Recipe, read_recipe
from export.exporter import export
from export.request import EngineOptions, Request, Size

STEPS = 4
_PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
PACKAGES = ("onnxruntime-gpu", "cupy-cuda13x", "tensorrt")
Result = dict[str, Any]


def gpu(arguments: argparse.Namespace, console: Console) -> int:
    """Run the parts."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise BenchError("torch sees no GPU here; --device cpu goes the same way without one")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    record = Record(arguments.out, "gpu", PACKAGES, gpu=name)
    shape = SHAPES.get(arguments.student)
    with ExitStack() as stack:
        folder = Path(arguments.student)
        if shape:
            arguments.sizes = arguments.sizes or shape["sizes"]
            arguments.recipe = arguments.recipe or shape.get("recipe")
            arguments.recipe = arguments.recipe and Path(arguments.recipe)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "student"
            with console.status("writing random weights"), torch.device(arguments.device):
                write_pipeline(arguments.student, folder, adapter_class(arguments.student).half)
        elif not folder.is_dir():
            raise BenchError(f"{folder} is no folder, and no name: {', '.join(SHAPES)}")
        if not arguments.sizes:
            raise BenchError("--sizes: which pictures? WIDTHxHEIGHT")
        bench = Bench(folder, arguments)
        result: Result = {"student": arguments.student, "random": bool(shape), "parts": {}}
        for part in picked("--only", arguments.only, bench.parts):
            begin = time.perf_counter()
            with console.status(part):
                found = bench.attempt(bench.parts[part])
            found["took_seconds"] = round(time.perf_counter() - begin, 1)
            result["parts"][part] = found
            said = found.get("absent", "done")
            console.print(f"{part}: {said}, {found['took_seconds']} s", highlight=False)
            record.write(result)
    console.print(f"kept in {record.path}")
    return 0


class Bench:
    """The parts; ``plan`` has the command's options, ``folder`` is the student's."""

    def __init__(self, folder: Path, plan: argparse.Namespace) -> None:
        self.folder, self.plan = folder, plan
        self.half: torch.dtype = adapter_class(model_index(str(folder))["_class_name"]).half
        self.parts: dict[str, Callable[[], Result]] = {
            "limits": self.limits,
            "eager": self.stages,
            "compile": partial(self.stages, compiled=True),
            "onnxruntime": partial(self.engine, f"onnxruntime {plan.device}"),
            "tensorrt": partial(self.engine, "tensorrt"),
            "update": self.update,
        }

    def limits(self) -> Result:
        """Rate of a large product, memory bandwidth, and the operations and weights of stages."""
        on_gpu = self.plan.device == "cuda"
        side, size = (8192, 2**32) if on_gpu else (512, 2**24)
        rates = {}
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            x, w = torch.randn(2, side, side, device=self.plan.device, dtype=dtype)
            rates[str(dtype)] = 2e3 * side**3 / self.timed(partial(torch.matmul, x, w))["p50"]
        array = torch.ones(size // 4, device=self.plan.device)
        bandwidth = 1e3 * size / self.timed(array.sum)["p50"]
        stages = self._torch(compiled=False)
        runs: dict[str, Callable[[], Any]] = {"text": partial(stages.text, 1)}
        for picture in self.plan.sizes:
            runs[f"step {picture}"] = partial(stages.step, 1, picture)
            runs[f"decode {picture}"] = partial(stages.decode, 1, picture)
        flops = {}
        for name, run in runs.items():
            # As plain products: the counter does not know every attention kernel.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run()
            flops[name] = counter.get_total_flops()
        return {
            "flops_per_second": rates,
            "bytes_per_second": bandwidth,
            "flops_at_batch_1": flops,
            "weights": {
                name: sum(weight.numel() for weight in network.parameters())
                for name, network in stages.adapter.networks.items()
            },
        }

    def stages(self, *, compiled: bool = False) -> Result:
        """By torch: latency and throughput of the stages and of pictures, by size and batch."""
        stages = self._torch(compiled=compiled)
        points = []
        for size in self.plan.sizes:
            for batch in self.plan.batches:
                runs = {
                    "text": partial(stages.text, batch),
                    "step": partial(stages.step, batch, size),
                    "decode": partial(stages.decode, batch, size),
                    "picture": partial(stages.picture, batch, size),
                }
                for stage, run in runs.items():
                    point = {"stage": stage, "size": size, "batch": batch}
                    points.append(point | self.attempt(partial(self.timed, run)))
        return {"dtype": str(self.half), "points": points}

    def engine(self, runtime: str) -> Result:
        """Our scheduler on this runtime, from an export as ``cdm-export`` makes it."""
        begin = time.perf_counter()
        opened = OURS[runtime]()  # what is missing is known at once
        with tempfile.TemporaryDirectory() as folder:
            request = Request(
                student=self.folder,
                repository=Path(folder),
                sizes=tuple(Size(*map(int, size.split("x"))) for size in self.plan.sizes),
                precision=_PRECISIONS[self.half] if self.plan.device == "cuda" else None,
                max_batch=max(self.plan.batches),
                tensorrt=EngineOptions() if runtime == "tensorrt" else None,
            )
            export(request, Console(quiet=True))
            seconds = time.perf_counter() - begin
            exported = find_export(Path(folder), None)
            pipeline = Pipeline(exported.manifest, opened)
            costs, batches = measure(pipeline, exported.max_batch, exported.warm_up_seconds)
        scheduler = Scheduler(pipeline, costs, exported.cache_bytes)
        span = max(0.5, 10 * self.plan.seconds)
        loads = [
            {"size": size, "clients": clients}
            | closed_loop(scheduler, size, clients, (STEPS,), span)
            for size in self.plan.sizes
            for clients in (1, 16)
        ]
        scheduler.close()
        return {
            "export_seconds": round(seconds, 1),
            "costs": costs.to_json(),
            "batches": asdict(batches),
            "loads": loads,
        }

    def update(self) -> Result:
        """One CDM update of one of the recipe's processes; in more parts until it fits."""
        if self.plan.recipe is None:
            raise BenchError("an update needs a --recipe")
        width, height = self.plan.sizes[0].split("x")
        keys = {"teacher": self.folder, "batch": self.plan.update_batch}
        keys |= {"height": height, "width": width, "runtime.device": self.plan.device}
        recipe = read_recipe(self.plan.recipe, [f"{key}={value}" for key, value in keys.items()])
        parts, attempts = 1, []
        while parts <= self.plan.update_batch:
            runtime = replace(recipe.runtime, accumulate=parts)
            found = self.attempt(partial(self.updates, replace(recipe, runtime=runtime)))
            attempts.append({"accumulate": parts} | found)
            if "absent" not in found:
                break
            parts *= 2
        return {"size": self.plan.sizes[0], "batch": recipe.batch, "attempts": attempts}

    def updates(self, recipe: Recipe) -> Result:
        """Seconds of each of some updates, the first of which also warms up; peak memory."""
        trainer = trainer_of(recipe, Processes(recipe.runtime.device))
        self.reset_peak()
        seconds = [round(update_seconds(trainer), 4) for _ in range(3)]
        return {"seconds": seconds, "peak_bytes": self.peak_bytes()}

    def attempt(self, run: Callable[[], Result]) -> Result:
        """What it gives, or why it could not; in either case nothing is left on the GPU."""
        try:
            found = run()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found = {"absent": f"{type(error).__name__}: {lines[0]}"}
        gc.collect()
        if self.plan.device == "cuda":
            torch.cuda.empty_cache()
        return found

    def timed(self, run: Callable[[], Any]) -> Result:
        """Milliseconds of one run, of at least three after two that warm up; peak memory."""
        for _ in range(2):
            run()
        self.reset_peak()
        spent: list[float] = []
        end = time.perf_counter() + self.plan.seconds
        while len(spent) < 3 or time.perf_counter() < end:
            self.synchronize()
            begin = time.perf_counter()
            run()
            self.synchronize()
            spent.append(1e3 * (time.perf_counter() - begin))
        return {**percentiles(spent), "peak_bytes": self.peak_bytes()}

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.plan.device == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        if self.plan.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """Of the GPU's memory."""
        return torch.cuda.max_memory_allocated() if self.plan.device == "cuda" else None

    def _torch(self, *, compiled: bool) -> TorchStages:
        adapter: Adapter = load_adapter(str(self.folder), self.half)
        adapter.pipeline.to(self.plan.device)
        return TorchStages(adapter, STEPS, self.plan.device, compiled=compiled)
