"""What operators ask: ``/healthz``, ``/readyz``, and ``/metrics`` of gateway and engines."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cdm_serve.api.admission import Admission
from cdm_serve.api.errors import not_ready
from cdm_serve.api.files import FileStore
from cdm_serve.api.metrics import Metrics
from cdm_serve.backend import Backend, BackendError, BackendLost

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
    "not_finite": "Pictures that the model gave NaN for",
    "steps_saved": "Steps not made for cancelled and expired pictures",
    "cache_hits": "Prompts and incoming pictures whose encoding was at hand",
    "cache_misses": "Prompts and incoming pictures that were encoded",
}
GAUGES = {
    "waiting": "Pictures at hand, begun or not",
    "steps_waiting": "Steps that the pictures at hand still need",
    "cache_entries": "Encoded prompts and pictures kept",
    "cache_bytes": "Memory of the encoded prompts and pictures",
    "batches_exact": "1 where a picture is the same to the bit whatever it is batched with",
    "batches_dropped": "Batch sizes that are not used, for memory or because pictures would differ",
    "batches_largest_difference": "Between a batch that is used and the same alone, as a part of 1",
}
HISTOGRAMS = {
    "queue_seconds": "From arrival to the first stage",
    "text_seconds": "One execution of the text encoder; with variants, a model's share",
    "picture_seconds": "One execution of the VAE encoder",
    "step_seconds": "One execution of the transformer; with variants, a model's share",
    "decode_seconds": "One execution of the VAE decoder; with variants, a model's share",
    "tiny_decode_seconds": "One execution of the tiny decoder; with variants, a model's share",
    "batch_size": "Pictures that shared one transformer execution",
}


class State(Collector):
    """What is true at the moment of asking, of the gateway and of every engine.

    Of several engines of a model not each may have been asked, so their reports are kept, by model
    and engine and with when they came; one that is gone is soon forgotten.
    """

    def __init__(self, backend: Backend, admission: Admission, store: FileStore) -> None:
        self._backend = backend
        self._admission = admission
        self._store = store
        self._reports: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}

    async def ask_engines(self) -> None:
        """Have them describe themselves, as many as answer soon."""
        names = list(self._backend.models) if self._backend.ready else []
        # Questions are balanced as requests are: one for each engine known, and one for a new one.
        known = [model for model, _ in self._reports]
        await asyncio.gather(*map(self._ask, [*names, *(name for name in known if name in names)]))
        recent = time.monotonic() - FORGET_SECONDS
        self._reports = {
            key: (came, report)
            for key, (came, report) in self._reports.items()
            if key[0] in names and came > recent
        }

    async def _ask(self, name: str) -> None:
        with contextlib.suppress(TimeoutError, BackendLost, BackendError):
            async with asyncio.timeout(ASK_SECONDS):
                report = await self._backend.describe(name)
            self._reports[name, report["engine"]] = time.monotonic(), report

    def collect(self) -> Iterator[Metric]:
        """Every metric that is not counted by the gateway as it happens."""
        yield CounterMetricFamily(
            "cdm_serve_restarts", "Restarts of Triton", value=self._backend.restarts
        )
        for name, text, value in (
            ("ready", "1 when pictures can be had", self._backend.ready),
            (
                "queue_wait_seconds",
                "How long the work taken in will last, as clients are told",
                self._admission.wait,
            ),
            ("pictures_in_flight", "Pictures taken in", self._admission.pictures),
            ("links_bytes", "Bytes of pictures behind links", self._store.size),
        ):
            yield GaugeMetricFamily(f"cdm_serve_{name}", text, value=value)
        reports = [(labels, report) for labels, (_, report) in self._reports.items()]
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"cdm_engine_{name}", text, labels=LABELS)
            for labels, report in reports:
                counter.add_metric(labels, report["counters"][name])
            yield counter
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"cdm_engine_{name}", text, labels=LABELS)
            for labels, report in reports:
                gauge.add_metric(labels, (report | report["gauges"])[name])
            yield gauge
        for name, text in HISTOGRAMS.items():
            family = HistogramMetricFamily(f"cdm_engine_{name}", text, labels=LABELS)
            for labels, report in reports:
                histogram = report["histograms"][name]
                bounds = [*(str(float(bound)) for bound in histogram["bounds"]), "+Inf"]
                buckets = list(zip(bounds, accumulate(histogram["counts"]), strict=True))
                family.add_metric(labels, buckets, histogram["sum"])
            yield family


def operations_router(backend: Backend, metrics: Metrics, state: State) -> APIRouter:
    """The routes; the engines are asked when the metrics are."""
    metrics.registry.register(state)
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Always 200: restart the gateway only when this does not answer."""
        return {"status": "ok"}

    @router.get("/health", include_in_schema=False)
    @router.get("/ping", include_in_schema=False)
    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """503 while Triton starts, restarts or stops: send traffic elsewhere."""
        if not backend.ready:
            raise not_ready("the models are being loaded")
        return JSONResponse({"status": "ready", "restarts": backend.restarts})

    @router.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        await state.ask_engines()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
