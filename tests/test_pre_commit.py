"""The checks before a commit are those of ``make check``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_the_same_tools() -> None:
    _, _, after = (ROOT / "Makefile").read_text().partition("\ncheck:")
    recipe = after.split("\n\n")[0].splitlines()[1:]
    checks = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe]
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in configuration["repos"] for hook in repo["hooks"]]
    assert hooks == checks and len(checks) == 3


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="pre-commit needs a git checkout")
def test_pre_commit_runs_them(tmp_path: Path) -> None:
    """Without mypy, which reads everything."""
    program = Path(sys.executable).with_name("pre-commit")
    done = subprocess.run(
        [program, "run", "--files", "cdm_serve/__init__.py"],
        cwd=ROOT,
        env=os.environ | {"PRE_COMMIT_HOME": str(tmp_path), "SKIP": "mypy"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 2 and done.stdout.count("Skipped") == 1
