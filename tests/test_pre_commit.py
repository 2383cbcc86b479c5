"""The checks before a commit are those of ``make check``."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_same_tools() -> None:
    _, _, after = (ROOT / "Makefile").read_text().partition("\ncheck:")
    recipe = after.split("\n\n")[0].splitlines()[1:]
    checks = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe]
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in configuration["repos"] for hook in repo["hooks"]]
    assert hooks == checks and len(checks) == 3
