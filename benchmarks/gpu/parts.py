"""The parts of ``cdm-bench gpu``."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.errors import BenchError
from benchmarks.gpu.meter import Meter, Result
from benchmarks.gpu.shapes import SHAPES, write_pipeline
from benchmarks.prompts import Requests
from benchmarks.serving.bare import closed_loop
from benchmarks.serving.exported import find_export
from benchmarks.serving.stages import OURS
from benchmarks.serving.torch_stages import TorchStages
from benchmarks.training.cost import update_seconds
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes.runtime import Runtime
from cdm_serve.engine.scheduler import Scheduler
from cdm_serve.engine.warmup import measure
from distill.adapters import Adapter, load_adapter, load_skeleton
from distill.adapters.loading import model_index
from distill.adapters.registry import adapter_class
from distill.cost import estimate, footprint
from distill.distillation import trainer_of
from distill.parallel import Processes
from distill.recipe import LoraRecipe, Recipe, read_recipe
from export.exporter import export
from export.manifest import write_manifest
from export.plan import plan as planned
from export.profiles import profiles
from export.request import EngineOptions, Request, Size
from export.student import load_student
from export.tensorrt import build_engine, check_available, stamp

STEPS = 4
LORA = LoraRecipe(rank=64)
_PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


class Bench:
    """The parts.

    Args:
        student: its folder.
        plan: the command's options.
        work: a folder that the parts have in common.
        note: takes what a part has found so far.
    """

    def __init__(
        self, student: Path, plan: argparse.Namespace, work: Path, note: Callable[[Result], None]
    ) -> None:
        self.student, self.plan, self.work, self.note = student, plan, work, note
        self.meter = Meter(plan.device)

    @property
    def half(self) -> torch.dtype:
        """The architecture's type of two bytes."""
        half: torch.dtype = adapter_class(model_index(str(self.student))["_class_name"]).half
        return half

    def weights(self) -> Result:
        """Random ones, in the files of a pipeline."""
        shape = SHAPES[self.plan.student]
        with torch.device(self.plan.device):
            write_pipeline(self.plan.student, self.student, adapter_class(shape["pipeline"]).half)
        files = self.student.rglob("*.safetensors")
        return {"bytes": sum(path.stat().st_size for path in files)}

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

    def times_floor(self, milliseconds: float, stage: str, size: str, batch: int) -> Result:
        """How many times as long as the products alone would take, if the limits are known."""
        path = self.work / "limits.json"
        limits: Result = json.loads(path.read_text()) if path.exists() else {}
        flops = limits.get("flops_at_batch_1")
        if flops is None:
            return {}
        step, decode = (flops[f"{each} {size}"] for each in ("step", "decode"))
        stages = {"text": flops["text"], "step": step, "decode": decode}
        stages["picture"] = flops["text"] + STEPS * step + decode
        floor = 1e3 * batch * stages[stage] / limits["flops_per_second"][str(self.half)]
        return {"times_floor": round(milliseconds / floor, 2)}

    def stages(self, *, compiled: bool = False) -> Result:
        """By torch: latency and throughput of the stages and of pictures, by size and batch."""
        stages = self._torch(compiled=compiled)
        points: list[Result] = []
        self.note({"dtype": str(self.half), "points": points})
        for size in self.plan.sizes:
            for batch in self.plan.batches:
                runs = {
                    "text": partial(stages.text, batch),
                    "step": partial(stages.step, batch, size),
                    "decode": partial(stages.decode, batch, size),
                    "picture": partial(stages.picture, batch, size),
                }
                if size != self.plan.sizes[0]:
                    del runs["text"]
                for stage, run in runs.items():
                    found = self.meter.attempt(partial(self.timed, run))
                    if "p50" in found:
                        found |= self.times_floor(found["p50"], stage, size, batch)
                    points.append({"stage": stage, "size": size, "batch": batch} | found)
                    self.note({})
        return {}

    def onnxruntime(self) -> Result:
        """Our scheduler on ONNX Runtime, from an export as ``cdm-export`` makes it."""
        opened = OURS[f"onnxruntime {self.plan.device}"]()  # what is missing is known at once
        self._export()
        return self._serve(opened)

    def tensorrt(self) -> Result:
        """The same on TensorRT, by engines that are built from the same graphs."""
        opened = OURS["tensorrt"]()
        here = check_available()
        self._export()
        request, options = self._request(), EngineOptions()
        student = load_student(self.student, dtype=self.half)
        shapes = profiles(student, planned(request, student))
        version = find_export(request.repository, None).folder / "1"
        seconds: dict[str, float] = {}
        for component, each in shapes.items():
            begin = time.monotonic()
            engine = version / f"{component}.plan"
            build_engine(version / f"{component}.onnx", engine, each, options, lambda *_: None)
            seconds[component] = round(time.monotonic() - begin, 1)
            self.note({"build_seconds": seconds})
        contents = json.loads((version / "export.json").read_text())
        contents["tensorrt"] = stamp(version, shapes, options, here)
        write_manifest(contents, version)
        return self._serve(opened)

    def update(self) -> Result:
        """One CDM update of one of the recipe's processes, in as many parts as it takes to fit.

        Adapters are trained instead where all weights cannot be.
        """
        if self.plan.recipe is None:
            raise BenchError("an update needs a --recipe")
        width, height = self.plan.sizes[0].split("x")
        batch = self.plan.update_batch
        keys = {"teacher": self.student, "batch": batch, "runtime.device": self.plan.device}
        keys |= {"height": height, "width": width}
        recipe = read_recipe(self.plan.recipe, [f"{key}={value}" for key, value in keys.items()])
        skeleton = load_skeleton(recipe.teacher, recipe.max_sequence_length)
        most = torch.cuda.mem_get_info()[1] if self.plan.device == "cuda" else None
        attempts: list[Result] = []
        self.note({"size": self.plan.sizes[0], "batch": batch, "attempts": attempts})
        for lora in dict.fromkeys((recipe.lora, recipe.lora if recipe.lora.rank else LORA)):
            network = footprint(skeleton, replace(recipe, lora=lora))
            for parts in (2**k for k in range(batch.bit_length())):
                runtime = replace(recipe.runtime, accumulate=parts)
                tried = replace(recipe, lora=lora, runtime=runtime)
                counted = sum(estimate(network, tried, 1, False).values())
                found: Result = {"absent": "more than the GPU has"}
                if most is None or counted < most:
                    found = self.meter.attempt(partial(self.updates, tried))
                said = {"lora": lora.rank, "accumulate": parts, "counted_bytes": counted}
                attempts.append(said | found)
                self.note({})
                if "absent" not in found:
                    return {}
        return {}

    def updates(self, recipe: Recipe) -> Result:
        """Seconds of each of some updates, the first of which also warms up; peak memory."""
        trainer = trainer_of(recipe, Processes(recipe.runtime.device))
        self.meter.reset_peak()
        seconds = [round(update_seconds(trainer), 4) for _ in range(3)]
        return {"seconds": seconds, "peak_bytes": self.meter.peak_bytes()}

    def timed(self, run: Callable[[], Any]) -> Result:
        """Milliseconds of one run, and peak memory."""
        return self.meter.timed(run, self.plan.seconds)

    def _torch(self, *, compiled: bool) -> TorchStages:
        adapter: Adapter = load_adapter(str(self.student), self.half)
        adapter.pipeline.to(self.plan.device)
        return TorchStages(adapter, STEPS, self.plan.device, compiled=compiled)

    def _request(self) -> Request:
        """Not compared with torch, which on a CPU would take hours at this size."""
        return Request(
            student=self.student,
            repository=self.work / "models",
            sizes=tuple(Size(*map(int, size.split("x"))) for size in self.plan.sizes),
            precision=_PRECISIONS[self.half] if self.plan.device == "cuda" else None,
            max_batch=max(self.plan.batches),
            level="none",
        )

    def _export(self) -> None:
        """The graphs, unless an earlier part has made them."""
        begin, request = time.monotonic(), self._request()
        if not request.repository.exists():
            export(request, Console(quiet=True))
            self.note({"export_seconds": round(time.monotonic() - begin, 1)})

    def _serve(self, opened: Runtime) -> Result:
        """What each graph takes, and closed loops of clients of our scheduler."""
        exported = find_export(self.work / "models", None)
        pipeline = Pipeline(exported.manifest, opened)
        costs, batches = measure(pipeline, exported.max_batch, self.plan.seconds)
        points: list[Result] = []
        for size in self.plan.sizes:
            for stage in ("step", "decode"):
                for batch, spent in costs.curve(stage, size).wide.items():
                    point = {"stage": stage, "size": size, "batch": batch, "ms": 1e3 * spent}
                    points.append(point | self.times_floor(1e3 * spent, stage, size, batch))
        loads: list[Result] = []
        self.note({"batches": asdict(batches), "points": points, "loads": loads})
        scheduler = Scheduler(pipeline, costs, exported.cache_bytes)
        for size in self.plan.sizes:
            for clients in (1, 16):
                each = clients, (STEPS,), 5 * self.plan.seconds
                run = closed_loop(scheduler, size, Requests(known=4), count(), *each)
                loads.append({"size": size, "clients": clients} | run)
                self.note({"used_bytes": self.meter.used_bytes()})
        scheduler.close()
        return {}


# Those that take longest and may be cut come last.
PARTS: dict[str, Callable[[Bench], Result]] = {
    "limits": Bench.limits,
    "eager": Bench.stages,
    "update": Bench.update,
    "onnxruntime": Bench.onnxruntime,
    "tensorrt": Bench.tensorrt,
    "compile": partial(Bench.stages, compiled=True),
}
