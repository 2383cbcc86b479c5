"""The server under clients that leave, too much work, and kills."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, descendants

from benchmarks.cli import main
from cdm_serve.triton.processes import alive


def run(repository, tmp_path, *arguments):
    command = ["soak", "--repository", str(repository), "--out", str(tmp_path), *arguments]
    assert main(command) == 0
    (path,) = tmp_path.glob("soak-*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_who_leaves_disturbs_nobody(small_repository, tmp_path):
    result = run(
        small_repository, tmp_path, "--only", "leaving", "--requests", "200", "--leaving", "0.5"
    )
    leaving = result["leaving"]
    assert set(leaving["answers"]) == {"right", "left"}
    assert sum(leaving["answers"].values()) == 200
    assert set(leaving["growth"]) == {"gateway", "triton", "engine"}
    assert leaving["exit_code"] == 0
    assert not leaving["complaints"]


@pytest.mark.slow
def test_too_much_work_and_kills(repository, tmp_path):
    arguments = ("--only", "overload", "kills", "--times", "4", "--minutes", "0.2", "--kills", "1")
    result = run(repository, tmp_path, *arguments)
    overload = result["overload"]
    assert set(overload["answers"]) == {"right", "told when to come back"}
    kills = result["kills"]
    assert kills["answers"]["right"] > 0
    assert set(kills["answers"]) <= {"right", "503"}
    assert set(kills["seconds_away"]) == {"model", "Triton"}
    assert overload["exit_code"] == kills["exit_code"] == 0


def test_whoever_ends_the_command_ends_its_server(small_repository, tmp_path):
    """In a session of its own, so that nobody else would."""
    command = [sys.executable, "-m", "benchmarks.cli", "soak", "--out", str(tmp_path)]
    process = subprocess.Popen([*command, "--repository", str(small_repository)], cwd=ROOT)
    until = time.monotonic() + 60
    while "tritonserver" not in (family := descendants(process.pid)).values():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not [name for pid, name in family.items() if alive(pid)]


def test_no_export_is_one_line(tmp_path, capsys):
    assert main(["soak", "--repository", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no exported model" in capsys.readouterr().err
