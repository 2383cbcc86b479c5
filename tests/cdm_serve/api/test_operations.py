"""/metrics, read by Prometheus' own parser; and the dashboard that draws it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboard.json"


def families(server):
    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def test_health_is_where_people_look_for_it(server):
    for path in ("/health", "/ping", "/readyz", "/healthz"):
        assert server.http.get(path).status_code == 200
        assert server.http.head(path).status_code == 200


def test_counts_are_those_of_what_was_asked(server):
    def counted():
        return {
            "pictures": server.metric("cdm_engine_pictures_total", model="tiny"),
            "steps": server.metric("cdm_engine_steps_total", model="tiny"),
            "executions": server.metric("cdm_engine_executions_total", model="tiny"),
            "requests": server.metric(
                "cdm_serve_requests_total", route="/v1/images/generations", status="200"
            ),
            "refused": server.metric(
                "cdm_serve_requests_total", route="/v1/images/generations", status="400"
            ),
            "encoded": server.metric("cdm_serve_encode_seconds_count", format="webp"),
            "batches": server.metric("cdm_engine_batch_size_sum", model="tiny"),
        }

    def ask(seed):
        return server.generate(
            prompt="a fox", n=8, seed=seed, num_inference_steps=8, output_format="webp"
        )

    before = counted()
    with ThreadPoolExecutor(2) as pool:
        assert all(answer.status_code == 200 for answer in pool.map(ask, range(2)))
    server.generate(prompt="")
    more = {name: value - before[name] for name, value in counted().items()}
    # How many steps share one follows from what start-up measured, on a machine that others use.
    assert 0 < more.pop("executions") <= 8 * 16
    assert more == {
        "pictures": 16,
        "steps": 128,
        "requests": 2,
        "refused": 1,
        "encoded": 16,
        "batches": 128,
    }


def test_histograms_are_cumulative_and_complete(server):
    found = families(server)
    histograms = [family for family in found.values() if family.type == "histogram"]
    assert len(histograms) >= 6
    for family in histograms:
        series = {}
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if k != "le")
            series.setdefault(labels, []).append(sample)
        for samples in series.values():
            buckets = [s.value for s in samples if s.name.endswith("_bucket")]
            (count,) = [s.value for s in samples if s.name.endswith("_count")]
            assert buckets == sorted(buckets)
            assert buckets[-1] == count


def test_made_up_paths_make_no_labels(server):
    for number in range(5):
        server.http.get(f"/v1/made-up/{number}")
    routes = {sample.labels["route"] for sample in families(server)["cdm_serve_requests"].samples}
    names = ("generations", "edits", "variations", "files", "jobs")
    images = {f"/v1/images/{name}" for name in names}
    assert routes <= {*images, "/v1/models", "other"}


def test_the_dashboard_asks_only_for_what_there_is(server):
    names = {sample.name for family in families(server).values() for sample in family.samples} | {
        name for name, family in families(server).items() if not family.samples
    }
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    assert len(expressions) >= 10
    for expression in expressions:
        for name in re.findall(r"\bcdm_[a-z_]+", expression):
            known = name in names or name.removesuffix("_total") in names
            assert known, f"{name} in {expression}"
