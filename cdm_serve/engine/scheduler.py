"""The step scheduler: every tick is one batched transformer step for whoever is there.

Each live sample carries its own position in its own schedule, so a picture of two steps and one of
eight share a batch, a new one joins at the next step, and a finished one leaves at once.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.pipeline import Condition, Floats, Pipeline


class EngineError(Exception):
    """A picture that cannot be made; the text is for the client."""


@dataclass(frozen=True)
class Job:
    """One picture to make; ``size`` is ``WIDTHxHEIGHT``."""

    prompt: str
    seed: int
    steps: int
    size: str


@dataclass(frozen=True)
class Picture:
    """(H, W, 3) pixels and what they took: batch sizes, token count, milliseconds by stage."""

    image: NDArray[np.uint8]
    report: dict[str, Any]


Finish = Callable[[Picture | EngineError], None]


@dataclass(eq=False)
class Sample:
    """A job on its way, from ``latents`` at ``sigmas[step]`` to the end of ``sigmas``."""

    job: Job
    finish: Finish
    sigmas: Floats
    arrived: float
    step: int = 0
    latents: Floats = field(init=False)
    condition: Condition = field(init=False)
    batches: list[int] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """No step is left."""
        return self.step == len(self.sigmas) - 1


class Scheduler:
    """Owns the pipeline and the one thread that runs it."""

    def __init__(self, pipeline: Pipeline, max_batch: int) -> None:
        self._pipeline = pipeline
        self._max_batch = max_batch
        self._arrivals: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._live: list[Sample] = []
        self._open = True
        self.executions = 0
        self._thread = threading.Thread(target=self._run, name="step-scheduler", daemon=True)
        self._thread.start()

    def submit(self, job: Job, finish: Finish) -> None:
        """Queue a job; ``finish`` is called once, from the scheduler's thread.

        Raises:
            EngineError: the model was not exported for this size or number of steps.
        """
        grids = self._pipeline.manifest.sigmas.get(job.size)
        if grids is None:
            sizes = ", ".join(self._pipeline.manifest.sizes)
            raise EngineError(f"size {job.size} is not served, only {sizes}")
        if job.steps not in grids:
            served = ", ".join(map(str, sorted(grids)))
            raise EngineError(f"{job.steps} steps are not served, only {served}")
        sigmas = np.array(grids[job.steps], dtype=np.float32)
        self._arrivals.put(Sample(job, finish, sigmas, arrived=time.perf_counter()))

    @property
    def alive(self) -> bool:
        """Whether the thread is there; without it nothing will ever be answered."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        self._arrivals.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._open or self._live:
            arrived = self._take()
            self._guarded(arrived, self._start)
            if not self._live:
                continue
            # The oldest sample's shape is next: with several sizes in flight none starves.
            size = self._live[0].job.size
            batch = [sample for sample in self._live if sample.job.size == size]
            self._guarded(batch, self._advance)
            finished = [sample for sample in batch if sample in self._live and sample.done]
            self._guarded(finished, self._deliver)
            waiting = [sample for sample in self._live if sample not in batch]
            stepped = [sample for sample in batch if sample in self._live and not sample.done]
            self._live = waiting + stepped

    def _take(self) -> list[Sample]:
        """New samples up to the largest batch; waits when there is nothing else to do."""
        taken: list[Sample] = []
        while self._open and len(self._live) + len(taken) < self._max_batch:
            try:
                sample = self._arrivals.get(block=not (self._live or taken))
            except queue.Empty:
                break
            if sample is None:
                self._open = False
            else:
                taken.append(sample)
        self._live += taken
        return taken

    def _guarded(self, batch: list[Sample], stage: Callable[[list[Sample]], None]) -> None:
        """Run a stage; if it fails its samples are answered with the error and the rest goes on."""
        if not batch:
            return
        try:
            stage(batch)
        except Exception as error:
            traceback.print_exc()
            self._live = [sample for sample in self._live if sample not in batch]
            for sample in batch:
                sample.finish(EngineError(f"the model failed: {type(error).__name__}: {error}"))

    def _start(self, batch: list[Sample]) -> None:
        begin = time.perf_counter()
        prompts = list(dict.fromkeys(sample.job.prompt for sample in batch))
        conditions = dict(zip(prompts, self._pipeline.encode(prompts), strict=True))
        for sample in batch:
            sample.condition = conditions[sample.job.prompt]
            sample.latents = self._pipeline.noise(sample.job.seed, sample.job.size)
            sample.milliseconds["queue"] = 1e3 * (begin - sample.arrived)
        self._spend(batch, "text", begin)

    def _advance(self, batch: list[Sample]) -> None:
        """One Euler step of each sample: ``x + (sigma' - sigma) * velocity(x, sigma)``."""
        begin = time.perf_counter()
        sigma = np.stack([sample.sigmas[sample.step] for sample in batch])
        following = np.stack([sample.sigmas[sample.step + 1] for sample in batch])
        latents = np.stack([sample.latents for sample in batch])
        velocity = self._pipeline.velocity(latents, sigma, [sample.condition for sample in batch])
        latents = latents + (following - sigma)[:, None, None, None] * velocity
        self.executions += 1
        for sample, row in zip(batch, latents, strict=True):
            sample.latents = row
            sample.step += 1
            sample.batches.append(len(batch))
        self._spend(batch, "steps", begin)

    def _deliver(self, batch: list[Sample]) -> None:
        begin = time.perf_counter()
        images = self._pipeline.decode(np.stack([sample.latents for sample in batch]))
        self._spend(batch, "decode", begin)
        self._live = [sample for sample in self._live if sample not in batch]
        for sample, image in zip(batch, images, strict=True):
            sample.finish(Picture(image, self._report(sample)))

    def _report(self, sample: Sample) -> dict[str, Any]:
        return {
            "batches": sample.batches,
            "tokens": sample.condition.tokens,
            "milliseconds": {stage: round(ms, 3) for stage, ms in sample.milliseconds.items()},
        }

    @staticmethod
    def _spend(batch: Sequence[Sample], stage: str, begin: float) -> None:
        spent = 1e3 * (time.perf_counter() - begin)
        for sample in batch:
            sample.milliseconds[stage] = sample.milliseconds.get(stage, 0.0) + spent
