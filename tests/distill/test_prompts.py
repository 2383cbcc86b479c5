"""Prompt files, the embedding cache and the order of the data."""

from pathlib import Path

import pytest
import torch
from pipelines import PROMPTS

from distill.adapters import Sd3Adapter
from distill.errors import DistillError
from distill.prompts import encode_prompts, read_prompts, rows_at


def test_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a fox\n\n  an owl \r\nein Bär\n", encoding="utf-8")
    assert read_prompts(path) == ["a fox", "an owl", "ein Bär"]


def test_unusable_files_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(DistillError, match="cannot be read: No such file"):
        read_prompts(path)
    path.write_text(" \n\n")
    with pytest.raises(DistillError, match="is empty; expected one prompt a line"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DistillError, match="not UTF-8"):
        read_prompts(path)


def test_cached_rows_are_what_each_prompt_encodes_to(adapter: Sd3Adapter) -> None:
    prompts = [f"{prompt} {i}" for i in range(9) for prompt in PROMPTS]  # more than one group
    cached = encode_prompts(adapter, prompts)
    assert len(cached) == 45
    for row in (0, 31, 32, 44):
        alone = adapter.encode([prompts[row]])
        torch.testing.assert_close(cached[row : row + 1].prompt_embeds, alone.prompt_embeds)
        torch.testing.assert_close(cached[row : row + 1].pooled, alone.pooled)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    rows = rows_at(0, 30, count=10, seed=0)
    epochs = rows.view(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert rows.tolist() != rows_at(0, 30, count=10, seed=1).tolist()


def test_the_position_alone_resumes() -> None:
    straight = rows_at(0, 24, count=7, seed=3)
    assert torch.equal(
        torch.cat([rows_at(p, 6, count=7, seed=3) for p in (0, 6, 12, 18)]), straight
    )
