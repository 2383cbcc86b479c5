import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.errors import BenchError
from benchmarks.record import Environment, Record

KEEP = "from benchmarks.record import RESULTS, Record\nRecord(RESULTS, 'load').write({})\n"


def test_the_environment_stands_before_the_result(tmp_path: Path) -> None:
    kept = Record(tmp_path / "new", "load", ["pytest", "no-such-package"])
    kept.write({"answered": 3})
    whole = json.loads(kept.path.read_text())
    assert list(whole) == ["environment", "answered"]
    environment = whole["environment"]
    assert environment["packages"]["pytest"] == version("pytest")
    assert "no-such-package" not in environment["packages"]
    assert environment["cores"] == len(os.sched_getaffinity(0))
    assert 2**28 < environment["memory_bytes"] < 2**50
    assert set(environment["cpu_flags"]) <= set(Path("/proc/cpuinfo").read_text().split())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert environment["commit"] == (head.stdout.strip() or None)


@pytest.mark.parametrize(
    ("flags", "gpu", "kind"),
    [
        (("amx_bf16", "avx512_bf16", "avx512f"), None, "4-cores-amx"),
        (("avx512_bf16", "avx512f", "avx2"), None, "4-cores-avx512"),
        (("avx512f",), None, "4-cores-avx512"),
        ((), None, "4-cores-riscv64"),
        (("avx2",), "NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
    ],
)
def test_a_machine_has_a_kind(
    flags: tuple[str, ...], gpu: str | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    here = Environment("", "", 4, flags, gpu, 0, "", {}, None, None)
    assert here.kind == kind


def test_results_are_of_committed_source_only(tmp_path: Path) -> None:
    source = tmp_path / "source" / "benchmarks"
    source.mkdir(parents=True)
    for name in ("__init__.py", "record.py", "errors.py"):
        shutil.copy(Path(record.__file__).parent / name, source)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        environment["PYTHONPATH"] = str(source.parent)
        return subprocess.run(
            command, capture_output=True, text=True, cwd=source.parent, env=environment
        )

    def commit() -> None:
        run("git", "add", "-A")
        user = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        assert run("git", *user, "commit", "-qm", "all").returncode == 0

    run("git", "init", "-q")
    commit()
    assert run(sys.executable, "-c", KEEP).returncode == 0
    # A result beside it, changed or not, is no change of the source.
    assert run(sys.executable, "-c", KEEP).returncode == 0
    commit()
    with (source / "errors.py").open("a") as file:
        file.write("# other\n")
    refused = run(sys.executable, "-c", KEEP)
    assert "takes results of committed source only" in refused.stderr
    elsewhere = KEEP.replace("RESULTS, 'load'", "RESULTS.parent / 'other', 'load'")
    assert run(sys.executable, "-c", elsewhere).returncode == 0
    (kept,) = (source / "other").iterdir()
    assert json.loads(kept.read_text())["environment"]["dirty"] is True


def test_says_when_it_cannot_be_written(tmp_path: Path) -> None:
    kept = Record(tmp_path, "load")
    kept.path.mkdir()
    with pytest.raises(BenchError, match="cannot write"):
        kept.write({})
