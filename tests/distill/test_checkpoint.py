"""Checkpoints: kept, refused, damaged."""

from pathlib import Path

import pytest
import torch

from distill import checkpoint
from distill.errors import DistillError

RECIPE = {"teacher": "t", "batch": 3, "updates": 9, "log": {"keep": 2}}


def save(folder: Path, updates: int, keep: int = 2) -> Path:
    state = {"updates": updates, "weight": torch.full((3,), float(updates))}
    return checkpoint.save(folder, state, RECIPE, "hash", keep)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    paths = [save(tmp_path, updates) for updates in (5, 50, 500)]
    assert checkpoint.found(tmp_path) == paths[1:]
    assert sorted(tmp_path.iterdir()) == paths[1:]
    state = checkpoint.load(paths[2], RECIPE, "hash")
    assert state["updates"] == 500
    assert torch.equal(state["weight"], torch.full((3,), 500.0))


def test_some_keys_may_change(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    changed = {**RECIPE, "updates": 20, "log": {"keep": 7}}
    assert checkpoint.load(path, changed, "hash")["updates"] == 1
    with pytest.raises(DistillError, match=r"key batch was 3 in .* and is now 4; only updates"):
        checkpoint.load(path, {**RECIPE, "batch": 4}, "hash")
    with pytest.raises(DistillError, match="the prompts are not those of"):
        checkpoint.load(path, RECIPE, "other hash")


def test_damage_is_one_clear_line(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DistillError, match="is damaged") as caught:
        checkpoint.load(path, RECIPE, "hash")
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(tmp_path, 1, keep=1)
    real = torch.save

    def onto_a_full_disk(saved: object, path: Path) -> None:
        path.symlink_to("/dev/full")
        real(saved, path)

    monkeypatch.setattr(torch, "save", onto_a_full_disk)
    with pytest.raises(DistillError, match=r"checkpoint-00000002.pt cannot be written"):
        save(tmp_path, 2, keep=1)
    assert list(tmp_path.iterdir()) == [old]
