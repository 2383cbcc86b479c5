"""The arithmetic of the rounds, and short runs of the servers."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.errors import BenchError
from benchmarks.figures import spread
from benchmarks.serving.peers.entrants import ALONE, OURS, PEERS, Setting
from benchmarks.serving.peers.rounds import BEST, MANY, MIXED, ONE, Best, Tried, best, ratios
from benchmarks.serving.servers import started

AT_80 = "80 % load"
PYTHON = Path("runs/peers/bin/python")


def tried(name: str, setting: Setting, p50: float, throughput: float) -> Tried:
    one = {"milliseconds": {"p50": p50}}
    return Tried(name, setting, one, {"images_per_second": throughput})


def test_a_peer_is_measured_at_what_suits_it_best() -> None:
    large, small, none = Setting(batch=16, wait=0.05), Setting(batch=8, wait=0.01), Setting()
    found = best(
        [
            tried("a", large, 90, 50),
            tried("a", small, 60, 48),
            tried("a", none, 40, 20),
            tried("b", small, 70, 30),
        ]
    )
    assert found == {"a": Best(quick=none, busy=large), "b": Best(quick=small, busy=small)}


def runs(throughput: float, p50: float, p99: float | None, short: float) -> dict:
    return {
        ONE: {"milliseconds": {"p50": p50}},
        MANY: {"images_per_second": throughput},
        AT_80: None if p99 is None else {"milliseconds": {"p99": p99}},
        MIXED: {"by_steps": {"2": {"p50": short}}},
    }


def test_ratios_are_taken_within_a_round_and_over_the_best_of_it() -> None:
    # The machine is half as fast in the second round, where b passes a.
    first = {OURS: runs(60, 10, 20, 8), "a": runs(30, 40, 80, 16), "b": runs(20, 20, None, 32)}
    second = {OURS: runs(30, 20, 40, 16), "a": runs(10, 80, 80, 32), "b": runs(15, 40, None, 64)}
    found = ratios([first, second], [OURS])[OURS]
    assert found["images/s, 16 clients"] == {
        BEST: spread([2.0, 2.0]),
        "a": spread([2.0, 3.0]),
        "b": spread([3.0, 2.0]),
    }
    assert found["p50, 1 client"][BEST] == spread([0.5, 0.5])
    # b could not take that load, so it is compared with a alone.
    assert found["p99, 80 % load"] == {BEST: spread([0.25, 0.5]), "a": spread([0.25, 0.5])}
    assert found["p50 of 2 steps among 8"]["b"] == spread([0.25, 0.25])


def test_a_server_that_ends_at_once_is_one_line() -> None:
    with (
        pytest.raises(BenchError, match=r"nobody does not start; .* No module named nobody"),
        started("nobody", lambda port: ["nobody"]),
    ):
        pass


def test_a_python_is_named_from_where_the_command_was_given(monkeypatch) -> None:
    python = Path(sys.executable)
    monkeypatch.chdir(python.parent)
    with (
        pytest.raises(BenchError, match=r"nobody does not start; .* No module named nobody"),
        started("nobody", lambda port: ["nobody"], Path(python.name)),
    ):
        pass


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--repository", "nowhere"], "nowhere holds no exported model"),
        (["--student", "tests"], "tests is no diffusers folder"),
        (["--also", "nowhere"], "nowhere holds no exported model"),
        (["--only", "triton"], f"'triton' is unknown; known: {', '.join(PEERS)}"),
        (["--python", "nowhere/bin/python"], "python -m venv nowhere && nowhere/bin/python -m pip"),
    ],
)
def test_says_what_is_not_there(
    repository: Path, tmp_path: Path, capsys, more: list[str], said: str
) -> None:
    where = ["--repository", str(repository), "--out", str(tmp_path)]
    assert main(["peers", *where, *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.is_file(), reason="needs the peers' environment: docs/benchmarks.md")
def test_servers_take_turns_and_draw_the_same(
    student: Path, repository: Path, tmp_path: Path, capsys
) -> None:
    where = ["--student", str(student), "--repository", str(repository), "--out", str(tmp_path)]
    assert main(["peers", "--quick", *where]) == 0
    (path,) = tmp_path.glob("peers-*.json")
    result = json.loads(path.read_text())
    names = {OURS, *PEERS, ALONE}
    assert [set(each) for each in result["rounds"]] == [names] * 2
    for each in result["rounds"]:
        for of in each.values():
            assert of[MANY]["images_per_second"] > 0 < of[ONE]["milliseconds"]["p50"]
            assert set(of[MIXED]["by_steps"]) == {"2", "8"}
    for own in (OURS, ALONE):
        assert result["ratios"][own]["images/s, 16 clients"][BEST]["low"] > 0
    assert path.with_suffix(".png").exists()
    assert "cdm-serve over the others" in capsys.readouterr().out
