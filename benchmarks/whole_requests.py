"""Request-level batching: whole requests of equal size and steps, first come, first served.

It is what a batching server does that sees a model as one function: Triton's own dynamic batcher,
or a diffusers pipeline behind ``@serve.batch``. Here it runs on the same graphs and with the same
batch sizes as our scheduler, so that nothing differs but when a request may join and leave.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from cdm_serve.engine.cache import PromptCache
from cdm_serve.engine.costs import Costs, best_batch
from cdm_serve.engine.job import EngineError, Job, Picture, Pixels
from cdm_serve.engine.pipeline import Condition, Pipeline
from cdm_serve.engine.sample import Answer


class WholeRequests:
    """Takes jobs as ``Scheduler`` does, without partial images, deadlines and cancelling."""

    def __init__(self, pipeline: Pipeline, costs: Costs, cache_bytes: int) -> None:
        self._pipeline = pipeline
        self._costs = costs
        self._cache = PromptCache(cache_bytes)
        self._waiting: deque[tuple[Job, Answer] | None] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="whole requests", daemon=True)
        self._thread.start()

    def submit(self, key: str, job: Job, answer: Answer) -> None:
        """Queue a job; ``answer`` gets its picture. The key is there for likeness."""
        with self._changed:
            self._waiting.append((job, answer))
            self._changed.notify()

    def close(self) -> None:
        """Finish what was submitted, then end."""
        with self._changed:
            self._waiting.append(None)
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while batch := self._next():
            try:
                images = self._make([job for job, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    answer(EngineError(f"{type(error).__name__}: {error}"))
                continue
            for (_, answer), image in zip(batch, images, strict=True):
                answer(Picture(image, {"batches": [len(batch)]}))

    def _next(self) -> list[tuple[Job, Answer]]:
        """The request that waits longest and others like it; nothing at the end."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            first = self._waiting[0]
            if first is None:
                return []
            kind = first[0].size, first[0].steps
            like = [
                each for each in self._waiting if each and (each[0].size, each[0].steps) == kind
            ]
            batch = like[: best_batch(self._costs.step[first[0].size], len(like))]
            taken = {id(each) for each in batch}
            self._waiting = deque(each for each in self._waiting if id(each) not in taken)
            return batch

    def _make(self, jobs: list[Job]) -> Pixels:
        """(B, H, W, 3): text, all steps, decoding."""
        pipeline, size, steps = self._pipeline, jobs[0].size, jobs[0].steps
        conditions = self._conditions([job.prompt for job in jobs])
        sigmas = np.array(pipeline.manifest.sigmas[size][steps], dtype=np.float32)
        latents = pipeline.stack([pipeline.noise(job.seed, size) for job in jobs])
        for step in range(steps):
            velocity = pipeline.velocity(latents, np.full(len(jobs), sigmas[step]), conditions)
            distance = np.full(len(jobs), sigmas[step + 1] - sigmas[step])
            latents = pipeline.move(latents, distance, velocity)
        return pipeline.decode(latents)

    def _conditions(self, prompts: list[str]) -> list[Condition]:
        found: dict[str, Condition] = {}
        for prompt in prompts:
            if (condition := self._cache.get(prompt)) is not None:
                found[prompt] = condition
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if missing:
            for prompt, encoded in zip(missing, self._pipeline.encode(missing), strict=True):
                self._cache.put(prompt, encoded)
                found[prompt] = encoded
        return [found[prompt] for prompt in prompts]
