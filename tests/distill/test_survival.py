"""What a run does when its disk is full or its folder cannot be written."""

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distill import checkpoint
from distill.cli import main
from distill.errors import DistillError
from distill.log import RunLog


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Five MB; a checkpoint of the tiny pipeline takes about three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def recipe_file(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    return write_recipe(
        tmp_path,
        """
        updates = 3
        batch = 2
        [schedule]
        n_max = 2
        [log]
        log_every = 1
        preview_every = 0
        checkpoint_every = 1
        [evaluation]
        every = 0
        [runtime]
        device = "cpu"
        """,
    )


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    errors = capsys.readouterr().err
    last = errors.splitlines()[-1]
    assert last.startswith("cdm-distill: error: ") and "Traceback" not in errors
    return last


def test_a_disk_that_is_full_while_saving(
    recipe_file: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first checkpoint fits, the second does not; then there is room, and the run goes on."""
    run = small_disk / "run"
    assert main([str(recipe_file), "--run", str(run)]) == 2
    assert "cannot be written" in (message := one_line(capsys))
    assert "No space left on device" in message and str(run) in message
    assert [path.name for path in checkpoint.found(run)] == ["checkpoint-00000001"]
    assert not list(run.glob(".*"))

    room = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(room, check=True)
    assert main([str(recipe_file), "--run", str(run), "--resume"]) == 0
    assert [path.name for path in checkpoint.found(run)][-1] == "checkpoint-00000003"


def test_a_disk_that_is_full_for_the_student(
    recipe_file: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "filling").write_bytes(bytes(4_900_000))
    arguments = [str(recipe_file), "--run", str(tmp_path / "run"), "--resume"]
    output = small_disk / "student"
    assert main([*arguments, "--set", f"output={output}"]) == 2
    message = one_line(capsys)
    assert f"{output} cannot be written" in message and "No space left" in message
    assert sorted(path.name for path in small_disk.iterdir()) == ["filling"]
    # Training need not be repeated for a student elsewhere.
    assert main(arguments) == 0
    assert (tmp_path / "student" / "cdm.json").exists()


def test_a_run_folder_that_cannot_be_made(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(recipe_file), "--run", str(tmp_path / "file" / "run")]) == 2
    assert "Not a directory" in one_line(capsys)


def test_a_read_only_disk(
    recipe_file: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main([str(recipe_file), "--run", str(small_disk / "run")]) == 2
    assert "Read-only file system" in one_line(capsys)


# TensorBoard writes in a thread of its own, which ends with the error that append then tells.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_on_a_full_disk_is_one_line(small_disk: Path) -> None:
    before = set(threading.enumerate())
    log = RunLog(small_disk / "run", updates=0)
    with contextlib.suppress(OSError), (small_disk / "filling").open("wb", 0) as filling:
        while True:
            filling.write(bytes(4096))
    with pytest.raises(DistillError, match=r"log.jsonl cannot be written: .*No space left"):
        for update in range(2000):
            log.append({"update": update, "fake": 0.5})
    log.path = Path(os.devnull)  # which is never full
    with pytest.raises(DistillError, match=r"tensorboard.* cannot be written: .*No space left"):
        for update in range(2000):
            log.append({"update": update, "fake": 0.5})
    for thread in set(threading.enumerate()) - before:
        thread.join(60)  # or the next test is told of its error
