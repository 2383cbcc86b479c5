"""Files that appear whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.errors import DistillError
from distill.files import drop_unfinished, save_grid, whole_file, whole_folder

FULL = "/dev/full"  # every write to it fails with "No space left on device"


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with whole_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with whole_file(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with (
        pytest.raises(DistillError, match=r"file cannot be written: .*No space left"),
        whole_file(path) as temporary,
    ):
        temporary.symlink_to(FULL)
        temporary.write_text("x" * 100_000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with (
        pytest.raises(DistillError, match=r"notes/file cannot be written"),
        whole_file(tmp_path / "notes" / "file"),
    ):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_other_errors_pass_and_clean_up(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "student"
    for text in ("one", "two"):
        with whole_folder(path) as temporary:
            (temporary / text).write_text(text)
    assert [p.name for p in path.iterdir()] == ["two"]
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "student"
    path.mkdir()
    (path / "old").write_text("old")
    with (
        pytest.raises(DistillError, match=r"student cannot be written: .*No space left"),
        whole_folder(path) as temporary,
    ):
        (temporary / "weights").symlink_to(FULL)
        (temporary / "weights").write_text("x" * 100_000)
    assert (path / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DistillError, match="cannot be written"),
        whole_folder(tmp_path / "file" / "student"),
    ):
        pass


def test_what_a_kill_left_is_dropped(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-00000001.pt.123.tmp").write_text("half")
    (tmp_path / "log.jsonl").write_text("")
    drop_unfinished(tmp_path)
    drop_unfinished(tmp_path / "no such folder")
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_the_grid_holds_the_pictures_row_by_row(tmp_path: Path) -> None:
    pictures = torch.stack([torch.full((3, 2, 4), value) for value in (0.0, 0.2, 0.4, 0.6, 0.8)])
    save_grid(pictures, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (4, 12, 3)  # 3 columns, 2 rows
    corners = [pixels[2 * (i // 3), 4 * (i % 3), 0] for i in range(6)]
    assert corners == [0, 51, 102, 153, 204, 255]  # an empty place is white
