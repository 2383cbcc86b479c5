"""The order of the data, and which prompts are encoded when."""

from pathlib import Path

import pytest
import torch
from pipelines import PROMPTS

from distill.adapters import Condition
from distill.adapters.sd3 import Sd3Adapter
from distill.parallel import Processes
from distill.prompts import PromptStream, rows_at

MANY = [f"{prompt} {i}" for i in range(9) for prompt in PROMPTS]  # 45: more than one group


def same_bits(a: Condition, b: Condition) -> bool:
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.fixture
def encoded(adapter: Sd3Adapter, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The groups that the text encoders are given."""
    groups: list[list[str]] = []
    real = adapter.encode

    def noting(prompts: list[str]) -> Condition:
        groups.append(prompts)
        return real(prompts)

    monkeypatch.setattr(adapter, "encode", noting)
    return groups


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


@pytest.mark.parametrize("in_memory", [45, 44, 20], ids=["once", "one too many", "blocks"])
def test_samples_are_what_their_prompts_encode_to(adapter: Sd3Adapter, in_memory: int) -> None:
    stream = PromptStream(adapter, MANY, seed=5, in_memory=in_memory)
    rows = rows_at(38, 10, len(MANY), seed=5)  # the end of one epoch, the start of the next
    expected = adapter.encode([MANY[row] for row in rows.tolist()])
    condition = stream.at(range(38, 48))
    torch.testing.assert_close(condition.tensors, expected.tensors)


def test_a_small_list_is_encoded_once(adapter: Sd3Adapter, encoded: list[list[str]]) -> None:
    stream = PromptStream(adapter, MANY, seed=0, in_memory=45)
    for start in range(0, 200, 8):
        stream.at(range(start, start + 8))
    assert encoded == [MANY[start : start + 8] for start in range(0, 45, 8)]


def test_a_long_list_is_encoded_in_blocks_of_samples(
    adapter: Sd3Adapter, encoded: list[list[str]]
) -> None:
    stream = PromptStream(adapter, MANY, seed=0, in_memory=10)
    for start in range(0, 24, 4):  # samples 8 .. 11 lie in two blocks
        stream.at(range(start, start + 4))
    order = [MANY[row] for row in rows_at(0, 30, len(MANY), seed=0).tolist()]
    blocks = [order[:10], order[10:20], order[20:30]]
    assert encoded == [part for block in blocks for part in (block[:8], block[8:])]


def test_any_position_resumes_with_identical_bits(adapter: Sd3Adapter) -> None:
    straight = PromptStream(adapter, MANY, seed=1, in_memory=36)
    conditions = {start: straight.at(range(start, start + 6)) for start in range(0, 90, 6)}
    for start, condition in conditions.items():
        resumed = PromptStream(adapter, MANY, seed=1, in_memory=36)
        assert same_bits(resumed.at(range(start, start + 6)), condition), start


def test_encoders_leave_the_device_again(
    adapter: Sd3Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into their file's memory and type; the transformer never leaves it."""
    parts = adapter.pipeline.components
    parts["text_encoder"].half()
    before = {n: p.data_ptr() for n, p in parts["text_encoder"].named_parameters()}
    seen: list[torch.dtype] = []

    def where(prompts: list[str]) -> Condition:
        seen.extend(parts[name].dtype for name in ("text_encoder", "text_encoder_2"))
        raise KeyboardInterrupt  # even then

    monkeypatch.setattr(adapter, "encode", where)
    with pytest.raises(KeyboardInterrupt):
        PromptStream(adapter, PROMPTS, seed=0, in_memory=9).encode(["a"])
    assert seen == [torch.float32] * 2 and parts["text_encoder"].dtype == torch.float16
    assert before == {n: p.data_ptr() for n, p in parts["text_encoder"].named_parameters()}


def test_processes_encode_their_own_samples_of_a_block(
    adapter: Sd3Adapter, encoded: list[list[str]]
) -> None:
    order = [MANY[row] for row in rows_at(0, 24, len(MANY), seed=0).tolist()]
    expected = adapter.encode(order)
    encoded.clear()
    for rank in range(2):
        processes = Processes("cpu")
        processes.rank, processes.count = rank, 2
        stream = PromptStream(adapter, MANY, 0, 12, processes, batch=8)
        for start in range(0, 24, 8):
            rows = range(start + 4 * rank, start + 4 * rank + 4)
            condition = stream.at(rows).tensors
            there = expected[slice(rows.start, rows.stop)].tensors
            torch.testing.assert_close(condition, there)
    assert sorted(prompt for group in encoded for prompt in group) == sorted(
        order
    )  # each by one of them


def test_the_hash_tells_lists_apart(adapter: Sd3Adapter, tmp_path: Path) -> None:
    hashes = {
        PromptStream(adapter, prompts, 0, 9).sha256
        for prompts in (["a", "b"], ["b", "a"], ["a\nb"], ["a b"])
    }
    assert len(hashes) == 4
