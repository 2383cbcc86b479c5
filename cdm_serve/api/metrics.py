"""``GET /metrics``: the gateway's numbers and those of every model's engine, for Prometheus."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from itertools import accumulate

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cdm_serve.api.admission import Admission
from cdm_serve.api.files import FileStore
from cdm_serve.api.watch import Watch
from cdm_serve.backend import Backend, BackendError, BackendLost
from cdm_serve.triton.protocol import Message

ASK_SECONDS = 1.0
FORGET_SECONDS = 300.0
LABELS = ["model", "engine"]

COUNTERS = {
    "executions": "Transformer executions, each one step of a whole batch",
    "steps": "Steps of single pictures; divided by the executions, the mean batch size",
    "pictures": "Finished pictures",
    "partials": "Previews",
    "cancelled": "Pictures given up because their client left",
    "expired": "Pictures given up because their deadline passed",
    "failed": "Pictures that failed",
    "steps_saved": "Steps not made for cancelled and expired pictures",
    "cache_hits": "Prompts whose embedding was at hand",
    "cache_misses": "Prompts that were encoded",
}
GAUGES = {
    "waiting": "Pictures at hand, begun or not",
    "steps_waiting": "Steps that the pictures at hand still need",
    "cache_entries": "Prompt embeddings kept",
    "cache_bytes": "Memory of the prompt embeddings",
    "batches_exact": "1 where a picture is the same to the bit whatever it is batched with",
    "batches_dropped": "Batch sizes that are not used, for memory or because pictures would differ",
    "batches_largest_difference": "Between a batch that is used and the same alone, as a part of 1",
}
HISTOGRAMS = {
    "queue_seconds": "From arrival to the first stage",
    "text_seconds": "One execution of the text encoder",
    "step_seconds": "One execution of the transformer",
    "decode_seconds": "One execution of the VAE decoder",
    "batch_size": "Pictures that shared one transformer execution",
}


class State(Collector):
    """What is true at the moment of asking; ``reports`` are the engines' descriptions.

    By model and engine, and with when they came: of several engines of a model not each may have
    been asked, and one that is gone is soon forgotten.
    """

    def __init__(self, backend: Backend, admission: Admission, store: FileStore) -> None:
        self.reports: dict[tuple[str, str], tuple[float, Message]] = {}
        self._backend = backend
        self._admission = admission
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Every metric that is not counted by the gateway itself."""
        yield GaugeMetricFamily(
            "cdm_serve_ready", "1 when pictures can be had", value=self._backend.ready
        )
        yield CounterMetricFamily(
            "cdm_serve_restarts", "Restarts of Triton", value=self._backend.restarts
        )
        yield GaugeMetricFamily(
            "cdm_serve_queue_wait_seconds",
            "How long the work taken in will last, as clients are told",
            value=self._admission.wait,
        )
        yield GaugeMetricFamily(
            "cdm_serve_pictures_in_flight", "Pictures taken in", value=self._admission.pictures
        )
        yield GaugeMetricFamily(
            "cdm_serve_links_bytes", "Memory of pictures behind links", value=self._store.size
        )
        yield from self._engine_counters()
        yield from self._engine_histograms()

    def _engine_counters(self) -> Iterator[Metric]:
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"cdm_engine_{name}", text, labels=LABELS)
            for labels, (_, report) in self.reports.items():
                counter.add_metric(labels, report["counters"][name])
            yield counter
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"cdm_engine_{name}", text, labels=LABELS)
            for labels, (_, report) in self.reports.items():
                gauge.add_metric(labels, (report | report["gauges"])[name])
            yield gauge

    def _engine_histograms(self) -> Iterator[Metric]:
        for name, text in HISTOGRAMS.items():
            family = HistogramMetricFamily(f"cdm_engine_{name}", text, labels=LABELS)
            for labels, (_, report) in self.reports.items():
                histogram = report["histograms"][name]
                bounds = [*(str(float(bound)) for bound in histogram["bounds"]), "+Inf"]
                cumulative = accumulate(histogram["counts"])
                family.add_metric(
                    labels, list(zip(bounds, cumulative, strict=True)), histogram["sum"]
                )
            yield family


def metrics_router(watch: Watch, backend: Backend, state: State) -> APIRouter:
    """The route; the engines are asked when it is."""
    watch.registry.register(state)
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        names = list(backend.models) if backend.ready else []
        await asyncio.gather(*map(ask_engines, names))
        recent = time.monotonic() - FORGET_SECONDS
        state.reports = {
            key: found
            for key, found in state.reports.items()
            if key[0] in names and found[0] > recent
        }
        return Response(generate_latest(watch.registry), media_type=CONTENT_TYPE_LATEST)

    async def ask_engines(name: str) -> None:
        # Questions are balanced as requests are: one for each engine known, and one for a new one.
        known = sum(model == name for model, _ in state.reports)
        await asyncio.gather(*(ask(name) for _ in range(known + 1)))

    async def ask(name: str) -> None:
        with contextlib.suppress(TimeoutError, BackendLost, BackendError):
            async with asyncio.timeout(ASK_SECONDS):
                report = await backend.describe(name)
            state.reports[name, report["engine"]] = time.monotonic(), report

    return router
