"""What a cdm-serve did between two looks at its ``/metrics``."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.errors import BenchError
from benchmarks.load.client import get

_SUMS = {
    "steps": "cdm_engine_steps_total",
    "executions": "cdm_engine_executions_total",
    "waited": "cdm_engine_queue_seconds_sum",
    "waits": "cdm_engine_queue_seconds_count",
    "hits": "cdm_engine_cache_hits_total",
    "misses": "cdm_engine_cache_misses_total",
}
_BUCKETS = "cdm_engine_queue_seconds_bucket"


@dataclass(frozen=True)
class Work:
    """Realised batch, wait for the first stage, and share of prompts found in the cache.

    ``queue_p95_ms`` is the upper end of the bucket it fell in.
    """

    mean_batch: float
    queue_mean_ms: float
    queue_p95_ms: float | None
    cache_hits: float


@dataclass(frozen=True)
class Look:
    """The counters at one moment, of all models together."""

    sums: dict[str, float]
    buckets: dict[float, float]

    @staticmethod
    def at(url: str) -> Look | None:
        """Return None if the server does not answer or is another."""
        try:
            text = get(url, "/metrics")
        except BenchError:
            return None
        sums, buckets = dict.fromkeys(_SUMS, 0.0), dict[float, float]()
        names = {name: key for key, name in _SUMS.items()}
        found = False
        try:
            for family in text_string_to_metric_families((text or b"").decode()):
                for name, labels, value, *_ in family.samples:
                    if name in names:
                        found, sums[names[name]] = True, sums[names[name]] + value
                    elif name == _BUCKETS:
                        end = float(labels["le"])
                        buckets[end] = buckets.get(end, 0.0) + value
        except ValueError:
            return None
        return Look(sums, buckets) if found else None

    def since(self, before: Look) -> Work | None:
        """Return the work in between, or None if there was none."""
        did = {key: self.sums[key] - before.sums[key] for key in _SUMS}
        if not did["executions"] or not did["waits"]:
            return None
        waits = {end: self.buckets[end] - before.buckets.get(end, 0.0) for end in self.buckets}
        p95 = min((end for end, n in waits.items() if n >= 0.95 * did["waits"]), default=None)
        asked = did["hits"] + did["misses"]
        return Work(
            mean_batch=round(did["steps"] / did["executions"], 2),
            queue_mean_ms=round(1000 * did["waited"] / did["waits"], 2),
            queue_p95_ms=None if p95 in (None, float("inf")) else round(1000 * p95, 2),
            cache_hits=round(did["hits"] / asked, 3) if asked else 0.0,
        )
