"""The log stays consistent with the checkpoint."""

import json
from pathlib import Path

from distill.runlog import RunLog


def test_lines_after_the_checkpoint_and_half_lines_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", updates=0)
    for update in (1, 2, 3):
        log.append({"update": update, "fake": 0.5})
    with log.path.open("a") as file:
        file.write('{"update": 2, "fa')  # as a kill leaves it
    log = RunLog(tmp_path / "run", updates=2)
    log.append({"update": 3, "fake": 0.25})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2, 3]
    assert lines[-1] == {"update": 3, "fake": 0.25}
