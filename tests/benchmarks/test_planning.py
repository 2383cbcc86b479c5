"""Plans: from a file, and from a real server."""

import json
from pathlib import Path

import pytest

from benchmarks.calibration import Calibration, read_calibration
from benchmarks.cli import main
from benchmarks.errors import BenchError
from benchmarks.planning import Demand, plan_machines

# 10 pictures a second of one step each, one at a time.
SINGLE = Calibration("one", "64x64", 1, {1: 0.0}, {1: 0.1}, {1: 0.0})


def test_capacity_and_latency_alone() -> None:
    assert SINGLE.capacity == pytest.approx(10.0)
    paced = Calibration("one", "64x64", 4, {1: 0.01}, {1: 0.1}, {1: 0.02}, pace=2.0, extra=0.005)
    assert paced.alone == pytest.approx(2 * (0.01 + 4 * 0.1 + 0.02) + 0.005)


def test_the_least_number_that_holds() -> None:
    """At 35 a second four machines are the first that are not overrun."""
    found = plan_machines(SINGLE, Demand(35.0, slo_p99_ms=500.0))
    assert found["machines"] in (4, 5)
    assert found["tried"][found["machines"]]["p99"] <= 500.0
    assert all(
        latency["p99"] > 500.0
        for count, latency in found["tried"].items()
        if count < found["machines"]
    )


def test_an_slo_below_one_picture_is_out_of_reach() -> None:
    with pytest.raises(BenchError, match="one picture alone take 100 ms"):
        plan_machines(SINGLE, Demand(1.0, slo_p99_ms=99.0))


def test_command_plans_from_what_engine_wrote(tmp_path: Path, capsys) -> None:
    costs = {"text": {1: 2.0}, "step": {1: 5.0, 4: 11.0}, "decode": {1: 4.0}, "picture": {1: 30.0}}
    points = [
        {"runtime": "a", "stage": stage, "size": "64x64", "batch": batch, "milliseconds": spread}
        for stage, by_batch in costs.items()
        for batch, spent in by_batch.items()
        for spread in [{"median": spent, "low": spent, "high": spent}]
    ]
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"model": "tiny", "steps": 4, "points": points}))
    out = tmp_path / "plan.json"
    ask = ["plan", "--rate", "100", "--slo-p99", "300", "--calibration", str(path)]
    assert main([*ask, "--runtime", "a", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["calibration"]["step"] == {"1": 0.005, "4": 0.011}
    # Steps of 4 cost 11 / 4 ms a picture: 2 + 4 * 2.75 + 4 = 17 ms, 59 a second.
    assert result["plan"]["machines"] == 2
    assert "2 machines" in capsys.readouterr().out
    assert read_calibration(out, None) == read_calibration(path, "a")
    assert main([*ask, "--runtime", "b"]) == 2
    assert "expected one of a" in capsys.readouterr().err


def test_says_what_is_no_calibration(tmp_path: Path, capsys) -> None:
    path = tmp_path / "nothing.json"
    path.write_text("[]")
    assert main(["plan", "--rate", "1", "--calibration", str(path)]) == 2
    assert f"{path} is no calibration" in capsys.readouterr().err


@pytest.mark.slow
def test_command_is_checked_against_a_real_server(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    check = ["--check", "--seconds", "3", "--rate", "50", "--slo-p99", "2000"]
    assert main(["plan", "--repository", str(repository), *check, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [point["load"] for point in result["check"]] == [0.3, 0.5, 0.7]
    for point in result["check"]:
        assert point["requests"] > 0
        measured, simulated = point["measured"]["p50"], point["simulated"]["p50"]
        assert point["error"]["p50"] == pytest.approx(simulated / measured - 1, abs=1e-3)
    assert result["calibration"]["pace"] > 0
    assert result["plan"]["machines"] >= 1
