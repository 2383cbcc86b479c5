"""The log, its TensorBoard twin and the picture grids stay consistent with the checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.errors import DistillError
from distill.log import RunLog


def lines_of(log: RunLog) -> list[dict[str, float]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def board(folder: Path) -> EventAccumulator:
    """What TensorBoard itself reads."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_lines_after_the_checkpoint_and_half_lines_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", updates=0)
    for update in (1, 2, 3):
        log.append({"update": update, "fake": 0.5})
    with log.path.open("a") as file:
        file.write('{"update": 2, "fa')  # as a kill leaves it
    log = RunLog(tmp_path / "run", updates=2)
    log.append({"update": 3, "fake": 0.25})
    assert [line["update"] for line in lines_of(log)] == [1, 2, 3]
    assert lines_of(log)[-1] == {"update": 3, "fake": 0.25}


def test_a_run_that_starts_again_from_nothing_forgets_all(tmp_path: Path) -> None:
    RunLog(tmp_path, updates=0).append({"update": 0, "distance": 0.1}, "evaluation")
    log = RunLog(tmp_path, updates=0)
    assert lines_of(log) == [] and log.least("distance") == float("inf")


def test_the_least_of_a_number_outlives_a_resume(tmp_path: Path) -> None:
    log = RunLog(tmp_path, updates=0)
    for update, distance in ((1, 0.5), (2, 0.2), (3, 0.4), (4, 0.1)):
        log.append({"update": update, "fake": 0.0})
        log.append({"update": update, "distance": distance}, "evaluation")
    assert log.least("distance") == 0.1
    assert RunLog(tmp_path, updates=3).least("distance") == 0.2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the reader's own
def test_tensorboard_reads_one_consistent_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path, updates=0)
    for update in (1, 2, 3):
        log.append({"update": update, "fake": update / 4})
    log.append({"update": 3, "distance": 0.5}, "evaluation")
    log = RunLog(tmp_path, updates=2)  # killed after 3, continued from 2
    log.append({"update": 3, "fake": 9.0})
    log.append({"update": 4, "fake": 10.0})
    events = board(tmp_path)
    fake = [(event.step, event.value) for event in events.Scalars("training/fake")]
    assert fake == [(1, 0.25), (2, 0.5), (3, 9.0), (4, 10.0)]
    assert events.Scalars("evaluation/distance") == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_grids_are_a_file_and_a_picture_in_tensorboard(tmp_path: Path) -> None:
    pictures = torch.zeros(2, 3, 300, 600)
    pictures[1] = 1.0
    RunLog(tmp_path, updates=0).pictures("preview", pictures, 7)
    whole = np.asarray(Image.open(tmp_path / "preview-00000007.png"))
    assert whole.shape == (300, 1200, 3)
    assert (whole[:, :600] == 0).all() and (whole[:, 600:] == 255).all()
    (event,) = board(tmp_path).Images("preview")
    assert (event.step, event.height, event.width) == (7, 100, 400)  # at most 256 a side


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", updates=0, main=False)
    log.append({"update": 1, "distance": 0.5})
    log.pictures("preview", torch.zeros(1, 3, 8, 8), 1)
    assert not (tmp_path / "run").exists()
    assert log.least("distance") == 0.5


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DistillError, match=r"log.jsonl cannot be (read|written): .*Not a directory"
    ):
        RunLog(tmp_path / "file" / "run", updates=0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("")
    with pytest.raises(DistillError, match=r"tensorboard.* cannot be written"):
        RunLog(tmp_path / "run", updates=0)
