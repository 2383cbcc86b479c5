"""The first runs of a model's graphs: what they cost, and which batches may be used.

A batch size is used if a picture in it is the same as alone: to the bit under the policy ``exact``,
within ``CLOSE`` decibels under ``close``, which a GPU needs, since its libraries choose other
kernels for other shapes. What is dropped is logged.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.costs import Costs, Curve, Seconds, best_batch
from cdm_serve.engine.job import Pixels
from cdm_serve.engine.manifest import PICTURE
from cdm_serve.engine.memory import Growth
from cdm_serve.engine.pipeline import Condition, Pipeline
from cdm_serve.errors import StartError

LOG = logging.getLogger(__name__)

POLICIES = ("exact", "close")
# Least PSNR between a picture in a batch and the same alone.
CLOSE = 40.0
ROUNDS = 3
# Models faster than this are measured, and thereby warmed up, at every batch size.
SMALL_SECONDS = 0.1

Run = Callable[[Pipeline, int], NDArray[Any]]


@dataclass
class Batches:
    """What was found out: the ``batches`` of a model's card.

    ``largest_difference`` is between anything computed in a batch that is used and the same alone,
    as a part of the largest value; ``psnr`` is the least, in decibels, None where all is the same.
    """

    policy: str
    largest_difference: float = 0.0
    psnr: float | None = None
    dropped: list[str] = field(default_factory=list)

    def gauges(self) -> dict[str, float]:
        """Those of a description."""
        return {
            "batches_exact": float(self.psnr is None),
            "batches_dropped": float(len(self.dropped)),
            "batches_largest_difference": self.largest_difference,
        }

    def add(self, other: "Batches") -> None:
        """What was found out of another graph."""
        self.largest_difference = max(self.largest_difference, other.largest_difference)
        self.psnr = min(
            (each for each in (self.psnr, other.psnr) if each is not None), default=None
        )
        self.dropped += other.dropped

    def drop(self, what: str, reason: str) -> None:
        """A batch will not be used."""
        LOG.warning("%s is not used: %s", what, reason)
        self.dropped.append(f"{what}: {reason}")

    def fits(self, what: str, rows: NDArray[Any], alone: NDArray[Any]) -> bool:
        """Whether every row is what it is alone, as far as the policy asks."""
        if all(np.array_equal(row, alone) for row in rows):
            return True
        difference = np.abs(rows.astype(np.float64) - alone.astype(np.float64))
        peak = float(np.abs(alone).max()) or 1.0
        part = float(difference.max()) / peak
        error = max(float(np.mean(np.square(row))) for row in difference)
        decibels = 10 * np.log10(peak**2 / error)
        found = f"differs from alone by {part:.2g} of the largest value, {decibels:.0f} dB"
        if self.policy == "exact":
            self.drop(what, f"{found}, and the policy is exact")
            return False
        if not decibels >= CLOSE:
            self.drop(what, f"{found}, and close means {CLOSE:.0f} dB")
            return False
        self.largest_difference = max(self.largest_difference, part)
        self.psnr = float(min(decibels, self.psnr or decibels))
        return True


def measure(
    pipeline: Pipeline,
    most: int,
    budget: float,
    policy: str = "auto",
    measured: dict[tuple[str, str], tuple[Curve, Batches]] | None = None,
) -> tuple[Costs, Batches]:
    """Run every graph at the batches it will be asked for, which also warms it up.

    ``most`` is how many samples may be in execution at once, on all lanes. ``budget`` is in seconds
    and for each graph and size: when it is spent, larger batches are not tried and will not be
    used. The first run of each batch does not count, since it may compile, load libraries or search
    for kernels. The policy ``auto`` is that of the runtime. What ``measured`` has, by a graph's
    identity and the run, is not measured again; what it has not, is added.

    Raises:
        StartError: an unknown policy, or a graph gives NaN.
    """
    batches = Batches(pipeline.batches if policy == "auto" else policy)
    if batches.policy not in POLICIES:
        raise StartError(f"batches: {policy!r} is none of auto, {', '.join(POLICIES)}")
    needs_picture = pipeline.manifest.needs_picture
    largest = max(pipeline.manifest.sizes, key=lambda size: _grey(size).size)

    def text(pipeline: Pipeline, batch: int) -> NDArray[Any]:
        pictures = np.stack([_grey(largest)] * batch) if needs_picture else None
        conditions = pipeline.encode(["warm up"] * batch, pictures)
        return np.stack(
            [
                np.concatenate([pipeline.to_host(array).ravel() for array in each.embeds.values()])
                for each in conditions
            ]
        )

    measured = {} if measured is None else measured

    def curve(component: str, name: str, run: Run, most: int = most) -> Curve:
        key = pipeline.manifest.identities[component], name
        if key not in measured:
            own = Batches(batches.policy)
            measured[key] = sweep(name, run, pipeline, most, budget, own), own
        found, own = measured[key]
        batches.add(own)
        return found

    step: dict[str, Curve] = {}
    decode: dict[str, Curve] = {}
    picture: dict[str, Curve] = {}
    tiny: dict[str, Curve] = {}
    for size in pipeline.manifest.sizes:
        noise = pipeline.noise(0, size)
        condition = _condition(pipeline, size)

        def velocity(
            pipeline: Pipeline, batch: int, noise: Any = noise, condition: Any = condition
        ) -> NDArray[Any]:
            sigma = np.ones(batch, np.float32)
            latents = pipeline.stack([noise] * batch)
            return pipeline.to_host(pipeline.velocity(latents, sigma, [condition] * batch))

        def pixels(
            pipeline: Pipeline, batch: int, noise: Any = noise, decoder: str = "full"
        ) -> NDArray[Any]:
            return pipeline.decode(pipeline.stack([noise] * batch), decoder)

        def encoded(pipeline: Pipeline, batch: int, size: str = size) -> NDArray[Any]:
            return pipeline.to_host(pipeline.encode_picture(_grey(size))[None])

        step[size] = curve("transformer", f"a step at {size}", velocity)
        decode[size] = curve("vae_decoder", f"decoding at {size}", pixels)
        if "tiny" in pipeline.manifest.decoders:
            small = partial(pixels, decoder="tiny")
            tiny[size] = curve("tiny_decoder", f"tiny decoding at {size}", small)
        if pipeline.manifest.edits:
            picture[size] = curve("vae_encoder", f"encoding at {size}", encoded, most=1)
    # With pictures texts are encoded one by one, as long as with the largest.
    texts = curve("text_encoder", "text encoding", text, most=1 if needs_picture else most)
    return Costs(texts, step, decode, picture, tiny), batches


def _condition(pipeline: Pipeline, size: str) -> Condition:
    """Of something to measure with, and of a grey picture where one is needed."""
    if not pipeline.manifest.needs_picture:
        return pipeline.encode(["warm up"])[0]
    grey = _grey(size)
    (condition,) = pipeline.encode(["warm up"], grey[None])
    embeds = condition.embeds | {PICTURE: pipeline.encode_picture(grey)}
    return replace(condition, embeds=embeds)


def _grey(size: str) -> Pixels:
    width, height = map(int, size.split("x"))
    return np.full((height, width, 3), 127, np.uint8)


def sweep(
    name: str, run: Run, pipeline: Pipeline, most: int, budget: float, batches: Batches
) -> Curve:
    """The curve of one graph: with the whole machine, and on its lanes where they are usable.

    Raises:
        StartError: the graph gives NaN.
    """
    return _Sweep(name, run, batches, budget).curve(pipeline, most)


class _Sweep:
    """Seconds of one graph by batch."""

    def __init__(self, name: str, run: Run, batches: Batches, budget: float) -> None:
        self._name = name
        self._run = run
        self._batches = batches
        self._left = budget

    def curve(self, pipeline: Pipeline, most: int) -> Curve:
        """With the whole machine, of which one sample is enough where there are usable lanes."""
        self._alone = self._run(pipeline, 1)[0]
        if not np.isfinite(self._alone).all():
            raise StartError(
                f"{self._name}: the graph gives NaN in the precision that it runs in here: export "
                "or serve it in another one"
            )
        lanes = pipeline.lanes
        narrow = self._seconds(lanes, max(1, most // len(lanes))) if lanes else {}
        wide = self._seconds([pipeline], 1 if narrow else most)
        return Curve(wide, narrow, len(lanes) if narrow else 1)

    def _seconds(self, places: Sequence[Pipeline], most: int) -> Seconds:
        """In all places at once: doubling, then those between 1 and the best, if all are short.

        The least of some rounds, so that a busy moment does not speak against one batch.
        """
        seconds: Seconds = {}
        growth = Growth()

        def try_out(batches: list[int]) -> None:
            usable = []
            for batch in batches:
                if seconds and self._left < 0:
                    break
                fits = self._fits(pool, places, batch, growth)
                if fits is None:
                    break
                if fits:
                    seconds[batch] = self._time(pool, places, batch)
                    usable.append(batch)
            for _ in range(ROUNDS - 1):
                for batch in usable:
                    if self._left < 0:
                        return
                    seconds[batch] = min(seconds[batch], self._time(pool, places, batch))

        with ThreadPoolExecutor(len(places)) as pool:
            try_out([2**k for k in range(most.bit_length()) if 2**k <= most])
            if not seconds:
                return {}
            best = best_batch(seconds, most)
            if seconds[min(seconds)] < SMALL_SECONDS:
                try_out([batch for batch in range(3, best) if batch & (batch - 1)])
        return {batch: spent for batch, spent in sorted(seconds.items()) if batch <= best}

    def _fits(
        self, pool: ThreadPoolExecutor, places: Sequence[Pipeline], batch: int, growth: Growth
    ) -> bool | None:
        """Whether a picture comes out as it is alone; None if there is no memory for the batch."""
        lane = "" if len(places) == 1 else " on each lane"
        what = f"batch {batch}{lane} for {self._name}"
        if lacking := growth.lacks(batch):
            self._batches.drop(what, lacking)
            return None
        try:
            with growth.watch(batch):
                results = list(pool.map(lambda place: self._run(place, batch), places))
        except Exception as error:
            if (batch == 1 and not lane) or not _out_of_memory(error):
                raise
            self._batches.drop(what, f"this batch is too large ({error})")
            return None
        fits = self._batches.fits(what, np.concatenate(results), self._alone)
        # Alone on the whole machine there is nothing else to use.
        return fits or (batch == 1 and not lane)

    def _time(self, pool: ThreadPoolExecutor, places: Sequence[Pipeline], batch: int) -> float:
        """Seconds; on lanes those of their processors, whatever else the machine does meanwhile."""
        begin, spent = time.perf_counter(), time.process_time()
        for _ in pool.map(lambda place: self._run(place, batch), places):
            pass
        seconds = time.perf_counter() - begin
        self._left -= seconds
        return seconds if len(places) == 1 else (time.process_time() - spent) / len(places)


def _out_of_memory(error: Exception) -> bool:
    """Every library has an error of its own for it."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or "memory" in text or "alloc" in text
