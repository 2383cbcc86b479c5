"""The arithmetic of the rounds, and one short run of all four servers."""

import json
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.contenders import Setting, started
from benchmarks.errors import BenchError
from benchmarks.peer_rounds import FASTAPI, INT8, LITSERVE, OURS, RAY, best, ratios, spread
from benchmarks.peers.student import parser


def test_settings_reach_the_peers_command_line() -> None:
    setting = Setting(batch=8, wait=0.05, workers=2, bf16=True)
    read = parser().parse_args(["student", "8000", *setting.arguments()])
    assert (read.batch, read.wait, read.workers, read.bf16, read.lock) == (8, 0.05, 2, True, False)
    assert str(setting) == "batch 8, 50 ms, 2 workers, bf16"
    assert str(Setting(lock=True)) == "one at a time, float32"


def test_the_best_setting_is_the_one_of_the_most_pictures() -> None:
    slow, fast = Setting(batch=8), Setting(batch=16)
    tried = [(RAY, slow, {"images_per_second": 3.0}), (RAY, fast, {"images_per_second": 5.0})]
    tried.append((LITSERVE, slow, {"images_per_second": 4.0}))
    assert best(tried) == {RAY: fast, LITSERVE: slow}


def test_ratios_are_taken_within_a_round() -> None:
    def runs(throughput: float, p50: float) -> dict[str, object]:
        return {"1": {"milliseconds": {"p50": p50}}, "16": {"images_per_second": throughput}}

    # The machine is half as fast in the second round, and LitServe passes Ray there.
    first = {OURS: runs(60, 10), FASTAPI: runs(10, 40), LITSERVE: runs(20, 30), RAY: runs(30, 30)}
    second = {OURS: runs(30, 20), FASTAPI: runs(5, 80), LITSERVE: runs(20, 60), RAY: runs(15, 60)}
    found = ratios([first, second])
    assert found["throughput / FastAPI"] == {"median": 6.0, "low": 6.0, "high": 6.0}
    assert found["p50 / FastAPI"]["median"] == 0.25
    assert found["throughput / best batching peer"] == spread([2.0, 1.5])
    # The int8 export's ratios are to the peers alone, and change nothing of the others.
    with_int8 = ratios([first | {INT8: runs(90, 5)}, second | {INT8: runs(40, 10)}])
    assert with_int8.items() > found.items()
    assert with_int8["int8 throughput / FastAPI"] == spread([9.0, 8.0])
    assert with_int8["int8 p50 / Ray Serve"] == spread([1 / 6, 1 / 6])
    assert not any("cdm-serve" in name for name in with_int8)


def test_a_server_that_ends_at_once_is_one_line() -> None:
    with (
        pytest.raises(BenchError, match=r"nobody does not start; .* No module named nobody"),
        started("nobody", lambda port: ["nobody"]),
    ):
        pass


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--repository", "nowhere"], "nowhere holds no export: cdm-export"),
        (["--student", "tests"], "tests is no diffusers folder"),
        (["--int8", "nowhere"], "nowhere holds no int8 export: cdm-export"),
    ],
)
def test_says_what_is_not_there(
    repository: Path, tmp_path: Path, capsys, more: list[str], said: str
) -> None:
    pytest.importorskip("litserve", reason="needs the extra 'peers'")
    pytest.importorskip("ray", reason="needs the extra 'peers'")
    where = ["--repository", str(repository), "--out", str(tmp_path / "peers.json")]
    assert main(["peers", *where, *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("contents", ["{", "[]", "{}", '{"precision": "fp32"}'])
def test_an_int8_export_that_is_none_is_one_line(
    repository: Path, tmp_path: Path, capsys, contents: str
) -> None:
    pytest.importorskip("litserve", reason="needs the extra 'peers'")
    pytest.importorskip("ray", reason="needs the extra 'peers'")
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "1" / "export.json").write_text(contents)
    assert main(["peers", "--repository", str(repository), "--int8", str(tmp_path)]) == 2
    assert "holds no int8 export: cdm-export" in capsys.readouterr().err


@pytest.mark.slow
def test_four_servers_take_turns_and_draw_the_same(
    student: Path, repository: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("litserve", reason="needs the extra 'peers'")
    pytest.importorskip("ray", reason="needs the extra 'peers'")
    out = tmp_path / "peers.json"
    where = ["--student", str(student), "--repository", str(repository), "--out", str(out)]
    assert main(["peers", "--quick", *where]) == 0
    result = json.loads(out.read_text())
    assert [set(each) for each in result["rounds"]] == [{OURS, FASTAPI, LITSERVE, RAY}] * 2
    for each in result["rounds"]:
        for runs in each.values():
            assert runs["16"]["images_per_second"] > 0 < runs["1"]["milliseconds"]["p50"]
            assert runs["16"]["client_cpu_ms"] < 5
    assert result["ratios"]["throughput / FastAPI"]["low"] > 0
    assert {"litserve", "ray"} <= set(result["environment"]["packages"])
    assert (tmp_path / "peers.png").exists()
    assert "cdm-serve over the others" in capsys.readouterr().out
