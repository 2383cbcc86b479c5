"""The server against the bare engine, closed loops and arrivals."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.bare import costs_of
from benchmarks.cli import main
from benchmarks.exported import find_export
from benchmarks.loops import run_load
from benchmarks.overhead import LOADS
from benchmarks.tally import Tally, percentiles
from cdm_serve.engine.costs import Costs
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.scheduler import Scheduler

FLAT = {1: 0.02, 2: 0.02, 4: 0.02}
COSTS = Costs(FLAT, {"64x64": FLAT, "96x64": FLAT}, {"64x64": FLAT, "96x64": FLAT})


@pytest.mark.slow
def test_command_measures_all_contenders(repository: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "overhead.json"
    size = ["--rounds", "2", "--seconds", "1.5", "--only", "alone", "mixed"]
    assert main(["overhead", "--repository", str(repository), *size, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert "environment" in result
    for load in ("alone", "mixed"):
        for measured in result["rounds"][load]:
            assert sorted(measured) == sorted(LOADS[load])
            for run in measured.values():
                assert run["images_per_second"] > 0
                assert sum(run["cpu_milliseconds"].values()) > 0
    assert "2" in result["rounds"]["mixed"][0]["server, json"]["by_steps"]
    first, second = (
        each["server, json"]["milliseconds"]["p50"] / each["bare engine"]["milliseconds"]["p50"]
        for each in result["rounds"]["alone"]
    )
    ratio = result["bars"]["p50 alone, json"]["ratio"]
    assert ratio["median"] == pytest.approx((first + second) / 2, rel=0.01)
    assert "gateway" in capsys.readouterr().out


def test_says_what_is_missing(tmp_path: Path, capsys) -> None:
    assert main(["overhead", "--repository", str(tmp_path)]) == 2
    assert f"--to onnx --out {tmp_path}" in capsys.readouterr().err


def test_finds_a_model_and_how_it_is_served(repository: Path) -> None:
    exported = find_export(repository, None)
    assert exported.folder == repository / "tiny"
    assert exported.parameters["runtime"] == "openvino"
    assert exported.max_batch == 16


def test_costs_are_what_was_described() -> None:
    steps = {1: 0.01, 4: 0.02}
    costs = Costs({1: 0.5}, {"64x64": steps}, {"64x64": {1: 0.1}})
    assert costs_of(json.loads(json.dumps(costs.to_json())), {1: 0.5}) == costs


def test_only_the_window_counts(monkeypatch) -> None:
    """Of 10 s, the clock runs from the second second on."""
    clock = [0.0]
    monkeypatch.setattr("benchmarks.tally.time.perf_counter", lambda: clock[0])
    tally = Tally(10.0, begin=0.0)
    for moment in (1.0, 2.0, 3.0, 11.9, 12.0, 13.0):
        clock[0] = moment
        assert tally.open == (moment < 12.0)
        tally.add(4, sent=moment - 0.5)
    assert tally.answered == 6
    report = tally.to_json()
    assert report["by_steps"]["4"]["count"] == 3
    assert report["images_per_second"] == 0.3
    assert report["milliseconds"]["p99"] == 500.0


def test_planned_requests_count_when_they_were_due(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.tally.time.perf_counter", lambda: 99.0)
    tally = Tally(10.0, begin=0.0)
    for due in (1.9, 2.0, 11.9, 12.0):
        tally.add(4, due, planned=True)
    assert tally.to_json()["by_steps"]["4"] == {"count": 2, **percentiles([97000.0, 87100.0])}


def test_arrivals_come_in_their_time(pipeline: Pipeline) -> None:
    scheduler = Scheduler(pipeline, COSTS, 2**20)
    begin = time.perf_counter()
    arrivals = [(0.1 * k, steps) for k, steps in enumerate([1, 2, 1, 2, 1])]
    tally = run_load(scheduler, "64x64", arrivals, 0.4)
    scheduler.close()
    assert time.perf_counter() - begin >= 0.4
    assert tally.answered == 5
    # Due from 0.08 to 0.48 s.
    assert {k: v["count"] for k, v in tally.to_json()["by_steps"].items()} == {"1": 2, "2": 2}


def test_percentiles_of_known_numbers() -> None:
    assert percentiles(range(101)) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
    assert percentiles([]) == {}
