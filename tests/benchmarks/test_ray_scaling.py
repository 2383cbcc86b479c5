"""The command on a real cluster of this machine, with the tiny export and for a moment."""

import json
import os

import pytest

pytest.importorskip("ray", reason="pip install 'cdm-serve[ray]'")
from benchmarks.ray_scaling import main

pytestmark = [
    pytest.mark.slow,  # two minutes: nodes and engines start, one after another
    pytest.mark.skipif(
        not os.access("/sys/fs/cgroup/cpu", os.W_OK), reason="needs root and control groups v1"
    ),
]


def test_engines_are_counted_and_all_pictures_right(repository, tmp_path, capsys) -> None:
    out = tmp_path / "result.json"
    arguments = ["--repository", str(repository), "--out", str(out)]
    assert main([*arguments, "--engines", "1", "2", "--rounds", "1", "--seconds", "2"]) == 0
    result = json.loads(out.read_text())
    assert [run["engines"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert run["pictures"] > 0
        assert run["cpu_seconds"]["engines"] > 0 and run["cpu_seconds"]["gateway"] > 0
        ours = sum(run["cpu_seconds"].values())
        assert ours <= run["machine_busy_seconds"] * 1.1 + 0.5
    assert "24 clients" in capsys.readouterr().out
