"""The server against the engine alone, and the arithmetic between them."""

import json
from itertools import count
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.figures import percentiles, spread
from benchmarks.prompts import Requests
from benchmarks.serving.bare import closed_loop, full_batches
from benchmarks.serving.exported import find_export
from benchmarks.serving.measure import made
from benchmarks.serving.overhead import CONTENDERS, ENGINE, GRAPHS, ratios
from benchmarks.serving.stages import EngineStages
from cdm_serve.engine.costs import Costs, Curve
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.scheduler import Scheduler

FLAT = dict.fromkeys((1, 2, 4), 0.02)
CURVE = Curve(FLAT, FLAT, 2)
COSTS = Costs(CURVE, *[{"64x64": CURVE, "96x64": CURVE}] * 4)


@pytest.mark.slow
def test_command_measures_all_contenders(repository: Path, tmp_path: Path, capsys) -> None:
    size = ["--rounds", "2", "--seconds", "1.5", "--only", "busy", "mixed"]
    assert main(["overhead", "--repository", str(repository), *size, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("overhead-*.json")
    result = json.loads(path.read_text())
    for load, names in (("busy", CONTENDERS), ("mixed", CONTENDERS[1:])):
        for measured in result["rounds"][load]:
            assert sorted(measured) == sorted(names)
            for run in measured.values():
                assert run["images_per_second"] > 0
                assert sum(run["cpu_milliseconds"].values()) == pytest.approx(
                    run["server_cpu_ms"], abs=0.05
                )
    assert set(result["rounds"]["mixed"][0]["server, JSON"]["by_steps"]) == {"2", "8"}
    assert set(result["rounds"]["busy"][0]["server, PNG"]["cpu_milliseconds"]) == {
        "engine",
        "triton",
        "gateway",
    }
    assert "gateway" in capsys.readouterr().out


def test_ratios_are_taken_within_a_round() -> None:
    def run(throughput: float) -> dict:
        return {"images_per_second": throughput}

    # The machine is half as fast in the second round.
    first = {GRAPHS: run(100), ENGINE: run(80), "server, JSON": run(60), "server, PNG": run(70)}
    second = {GRAPHS: run(50), ENGINE: run(40), "server, JSON": run(25), "server, PNG": run(35)}
    found = ratios({"busy": [first, second]})
    assert found[f"images/s at 16: server, JSON / {GRAPHS}"] == spread([0.6, 0.5])
    assert found[f"images/s at 16: {ENGINE} / {GRAPHS}"] == spread([0.8, 0.8])
    assert not any("alone:" in name for name in found)  # that load was not measured


def test_says_what_is_missing(tmp_path: Path, capsys) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["overhead", "--repository", str(tmp_path), *out]) == 2
    assert f"--to onnx --out {tmp_path}" in capsys.readouterr().err
    assert main(["overhead", "--repository", str(tmp_path), *out, "--only", "none"]) == 2


def test_finds_a_model_and_how_it_is_served(repository: Path) -> None:
    exported = find_export(repository, None)
    assert exported.folder == repository / "tiny"
    assert exported.parameters["runtime"] == "openvino"
    assert exported.max_batch == 8


def test_the_engine_is_asked_by_closed_loops_for_steps_in_turn(pipeline: Pipeline) -> None:
    scheduler = Scheduler(pipeline, COSTS, 2**20)
    run = closed_loop(scheduler, "64x64", Requests(), count(), 4, (1, 8), 1.0)
    scheduler.close()
    assert run["requests"] >= 4
    assert run["by_steps"]["1"]["p50"] < run["by_steps"]["8"]["p50"]


def test_the_graphs_make_whole_batches(pipeline: Pipeline) -> None:
    run = full_batches(EngineStages(pipeline), "64x64", batch=3, seconds=0.0)
    assert run["requests"] == 3
    assert run["images_per_second"] == pytest.approx(3e3 / run["milliseconds"]["p50"], rel=0.01)


def test_a_run_lasts_to_its_last_picture() -> None:
    run = made([2, 8, 2], due=[0.0, 0.0, 1.0], ended=[1.0, 4.0, 2.0])
    assert (run["requests"], run["images_per_second"]) == (3, 0.75)
    assert run["by_steps"]["2"]["p50"] == 1000.0
    assert run["milliseconds"]["p50"] == 1000.0


def test_percentiles_of_known_numbers() -> None:
    assert percentiles(range(101)) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
    assert percentiles([]) == {}
