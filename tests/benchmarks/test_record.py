import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.errors import BenchError
from benchmarks.record import write_result


def test_the_environment_stands_before_the_result(tmp_path: Path) -> None:
    write_result(tmp_path / "new" / "a.json", {"answered": 3}, ["pytest", "no-such-package"])
    text = (tmp_path / "new" / "a.json").read_text()
    assert list(json.loads(text)) == ["environment", "answered"]
    environment = json.loads(text)["environment"]
    assert environment["packages"]["pytest"] == version("pytest")
    assert "no-such-package" not in environment["packages"]
    assert environment["cores"] == len(os.sched_getaffinity(0))
    assert 2**28 < environment["memory_bytes"] < 2**50
    assert set(environment["cpu_flags"]) <= set(Path("/proc/cpuinfo").read_text().split())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert environment["commit"] == (head.stdout.strip() or None)


def test_says_when_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot write"):
        write_result(tmp_path, {})
