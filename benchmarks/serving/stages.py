"""The stages of a picture in one runtime."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load.client import cpu_seconds
from benchmarks.prompts import prompt
from benchmarks.serving.exported import find_export
from benchmarks.serving.worker import Answerer, Order
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from cdm_serve.engine.runtimes.openvino import OpenVino
from cdm_serve.engine.runtimes.runtime import Runtime
from cdm_serve.engine.runtimes.tensorrt import TensorRt

OURS: dict[str, Callable[[], Runtime]] = {
    "openvino f32": lambda: OpenVino("f32"),
    "openvino bf16": lambda: OpenVino("bf16"),
    "onnxruntime cpu": lambda: OnnxRuntime("cpu"),
    "onnxruntime cuda": lambda: OnnxRuntime("cuda"),
    "tensorrt": TensorRt,
}
TORCH = ("torch f32", "torch bf16")


class EngineStages:
    """As the server runs them; each returns when the work is done, not when it is queued."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._drawn: dict[tuple[int, str], Any] = {}
        (self._condition,) = pipeline.encode(["a fox"])

    @property
    def steps(self) -> int:
        """Of a picture."""
        return self._pipeline.manifest.default_steps

    def text(self, batch: int) -> Any:
        return self._pipeline.encode([prompt(number) for number in range(batch)])

    def step(self, batch: int, size: str) -> Any:
        sigma = np.ones(batch, np.float32)
        latents = self._latents(batch, size)
        conditions = [self._condition] * batch
        return self._pipeline.to_host(self._pipeline.velocity(latents, sigma, conditions))

    def decode(self, batch: int, size: str) -> Any:
        return self._pipeline.decode(self._latents(batch, size))

    def tiny_decode(self, batch: int, size: str) -> Any:
        return self._pipeline.decode(self._latents(batch, size), "tiny")

    def picture(self, batch: int, size: str) -> Any:
        sigmas = np.array(self._pipeline.manifest.sigmas[size][self.steps], np.float32)
        conditions = self.text(batch)
        latents = self._pipeline.denoise(self._noise(batch, size), sigmas, conditions)
        return self._pipeline.decode(latents)

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


def runtime_stages(name: str, folder: Path, student: Path) -> Answerer:
    """What measures one runtime, in a process of its own.

    Two thread pools in one process would get into each other's way. An order names a ``stage``
    (text, step, decode, tiny_decode, or picture: all of them with the default number of steps and
    the full decoder), a ``batch``, a ``size`` and for how many ``seconds`` to repeat it.

    Args:
        name: of the runtime, one of ``OURS`` or ``TORCH``.
        folder: of an exported model.
        student: that it is of.

    Raises:
        StartError, ModuleNotFoundError: this runtime cannot be had here.
    """
    manifest = find_export(folder.parent, folder.name).manifest
    stages: Any
    if name in TORCH:
        from benchmarks.serving.torch_stages import student_stages

        stages = student_stages(student, manifest.default_steps, name == TORCH[1])
    else:
        stages = EngineStages(Pipeline(manifest, OURS[name]()))

    def answer(order: Order) -> dict[str, Any]:
        stage, batch = order["stage"], order["batch"]
        where = (batch,) if stage == "text" else (batch, order["size"])
        return repeated(partial(getattr(stages, stage), *where), order["seconds"])

    return answer
