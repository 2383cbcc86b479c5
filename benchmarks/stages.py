"""The stages of a picture in one runtime, in a process of its own: ``python -m benchmarks.stages``.

A process each, because the thread pools of two runtimes in one process get into each other's way.
An order names a ``stage`` (text, step, decode, or picture: all of them with the default number of
steps), a ``batch``, a ``size`` and for how many ``seconds`` to repeat it; or it is one of ``gemm``,
``count``, ``bandwidth`` and ``encode``, which only some runtimes know.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.exported import find_export
from benchmarks.prompts import prompt
from benchmarks.worker import Order, cpu_seconds, obey
from cdm_serve.api.encode import OutputFormat, encode_image
from cdm_serve.engine.manifest import Manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from cdm_serve.engine.runtimes.openvino import OpenVino
from cdm_serve.engine.runtimes.runtime import Runtime
from cdm_serve.engine.runtimes.tensorrt import TensorRt
from cdm_serve.errors import StartError

OURS: dict[str, Callable[[], Runtime]] = {
    "openvino f32": lambda: OpenVino("f32"),
    "openvino bf16": lambda: OpenVino("bf16"),
    "onnxruntime cpu": lambda: OnnxRuntime("cpu"),
    "onnxruntime cuda": lambda: OnnxRuntime("cuda"),
    "tensorrt": TensorRt,
}
TORCH = ("torch f32", "torch bf16")
RUNTIMES = (*TORCH, *OURS)
GEMM_SIDES = (512, 1024, 2048)
FORMATS: tuple[OutputFormat, ...] = ("png", "jpeg", "webp")


class Stages(Protocol):
    """Each returns when the work is done, not when it is queued."""

    def text(self, batch: int) -> Any:
        """Encode so many different prompts."""

    def step(self, batch: int, size: str) -> Any:
        """One execution of the transformer."""

    def decode(self, batch: int, size: str) -> Any:
        """Latents to pixels in the memory of the CPU."""

    def picture(self, batch: int, size: str) -> Any:
        """From prompts to pixels."""

    def gemm(self, side: int) -> Callable[[], Any]:
        """A product of two square matrices, ready to be run."""


class EngineStages:
    """As the server runs them."""

    def __init__(self, manifest: Manifest, runtime: Runtime) -> None:
        self._pipeline = Pipeline(manifest, runtime)
        self._runtime = runtime
        self._drawn: dict[tuple[int, str], Any] = {}
        (self._condition,) = self._pipeline.encode(["a fox"])

    def text(self, batch: int) -> Any:
        """See ``Stages``."""
        return self._pipeline.encode([prompt(number) for number in range(batch)])

    def step(self, batch: int, size: str) -> Any:
        """See ``Stages``."""
        sigma = np.ones(batch, np.float32)
        latents = self._latents(batch, size)
        conditions = [self._condition] * batch
        return self._pipeline.to_host(self._pipeline.velocity(latents, sigma, conditions))

    def decode(self, batch: int, size: str) -> Any:
        """See ``Stages``."""
        return self._pipeline.decode(self._latents(batch, size))

    def picture(self, batch: int, size: str) -> Any:
        """See ``Stages``."""
        manifest = self._pipeline.manifest
        sigmas = np.array(manifest.sigmas[size][manifest.default_steps], np.float32)
        conditions = self.text(batch)
        latents = self._noise(batch, size)
        for sigma, following in pairwise(sigmas):
            velocity = self._pipeline.velocity(latents, np.full(batch, sigma), conditions)
            latents = self._pipeline.move(latents, np.full(batch, following - sigma), velocity)
        return self._pipeline.decode(latents)

    def gemm(self, side: int) -> Callable[[], Any]:
        """See ``Stages``; a graph of one MatMul with constant weights, as a layer has them."""
        from benchmarks.gemm import gemm_graph

        arrays = self._runtime.arrays
        matrix = arrays.ones((side, side), np.float32)
        with gemm_graph(side) as path:
            graph = self._runtime.load(path)
        return lambda: self._runtime.to_host(graph.run({"x": matrix})["y"][0])

    def _latents(self, batch: int, size: str) -> Any:
        """Drawn once: noise is no part of these stages."""
        if (batch, size) not in self._drawn:
            self._drawn[batch, size] = self._noise(batch, size)
        return self._drawn[batch, size]

    def _noise(self, batch: int, size: str) -> Any:
        pipeline = self._pipeline
        return pipeline.stack([pipeline.noise(seed, size) for seed in range(batch)])


def repeated(run: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Wall and CPU milliseconds of one run, which is repeated for ``seconds``, at least twice."""
    run()
    begin, spent, count = time.perf_counter(), cpu_seconds(), 0
    while count < 2 or time.perf_counter() < begin + seconds:
        run()
        count += 1
    return {
        "milliseconds": 1e3 * (time.perf_counter() - begin) / count,
        "cpu_milliseconds": 1e3 * (cpu_seconds() - spent) / count,
    }


def gemm_rate(stages: Stages, seconds: float) -> dict[str, float]:
    """The most operations a second of a square product; a multiply-add is two."""
    rates = [
        2 * side**3 / (repeated(stages.gemm(side), seconds)["milliseconds"] / 1e3)
        for side in GEMM_SIDES
    ]
    return {"flops_per_second": max(rates), "side": GEMM_SIDES[int(np.argmax(rates))]}


def encoding(stages: Stages, size: str, seconds: float) -> dict[str, Any]:
    """Of one picture to a file, by format."""
    (pixels,) = stages.picture(1, size)
    found: dict[str, Any] = {}
    for name in FORMATS:
        encode = partial(encode_image, pixels, name, 90, {})
        found[name] = repeated(encode, seconds) | {"bytes": len(encode())}
    return found


def main(runtime: str, repository: str, model: str, student: str) -> None:
    """Say hello, with an ``absent`` reason where this runtime cannot be had, and obey."""
    exported = find_export(Path(repository), model)
    try:
        if runtime in TORCH:
            from benchmarks.torch_stages import TorchStages

            stages: Any = TorchStages(Path(student), exported.manifest, low=runtime == TORCH[1])
        else:
            stages = EngineStages(exported.manifest, OURS[runtime]())
    except (StartError, ModuleNotFoundError) as error:
        obey({"absent": str(error)}, lambda order: {})
        return

    def answer(order: Order) -> dict[str, Any]:
        stage, seconds = order["stage"], order.get("seconds", 0.0)
        if stage == "gemm":
            return gemm_rate(stages, seconds)
        if stage == "encode":
            return encoding(stages, order["size"], seconds)
        if stage == "count":
            counted: dict[str, Any] = stages.count(order["size"])
            return counted
        if stage == "bandwidth":
            return {"bytes_per_second": stages.bandwidth(seconds)}
        batch = order["batch"]
        if stage == "text":
            return repeated(lambda: stages.text(batch), seconds)
        return repeated(lambda: getattr(stages, stage)(batch, order["size"]), seconds)

    obey({"device": getattr(stages, "device", "")}, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
