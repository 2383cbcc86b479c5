"""What a cdm-serve did between two looks at its ``/metrics``."""

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.errors import BenchError
from benchmarks.load.client import get

_SUMS = {
    "steps": "cdm_engine_steps_total",
    "executions": "cdm_engine_executions_total",
    "waited": "cdm_engine_queue_seconds_sum",
    "waits": "cdm_engine_queue_seconds_count",
}
Look = dict[str, float]


def look(url: str) -> Look | None:
    """The counters of all models together; None if the server does not answer or is another."""
    try:
        text = (get(url, "/metrics") or b"").decode()
        families = list(text_string_to_metric_families(text))
    except (BenchError, ValueError):
        return None
    sums: dict[str, float] = {}
    for family in families:
        for name, _, value, *_ in family.samples:
            sums[name] = sums.get(name, 0.0) + value
    found = {key: sums[name] for key, name in _SUMS.items() if name in sums}
    return found if len(found) == len(_SUMS) else None


def work(before: Look | None, after: Look | None) -> dict[str, float] | None:
    """Realised batch, and milliseconds before the first stage; None if nothing was done."""
    if before is None or after is None:
        return None
    did = {key: after[key] - before[key] for key in after}
    if not did["executions"] or not did["waits"]:
        return None
    return {
        "mean_batch": round(did["steps"] / did["executions"], 2),
        "queue_mean_ms": round(1000 * did["waited"] / did["waits"], 2),
    }
