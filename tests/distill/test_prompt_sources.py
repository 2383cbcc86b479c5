"""Prompt files and datasets, and one clear line for what is wrong with them."""

import importlib.util
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.prompt_sources import read_prompts

INSTALLED = importlib.util.find_spec("datasets") is not None
needs_datasets = pytest.mark.skipif(not INSTALLED, reason="the library datasets is not installed")


def test_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a fox\n\n  an owl \r\nein Bär\n", encoding="utf-8")
    assert read_prompts(str(path)) == ["a fox", "an owl", "ein Bär"]


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("a fox\n", encoding="utf-8-sig")
    assert read_prompts(str(path)) == ["a fox"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a fox", "text": "not this"}\n{"text": "an\\nowl"}\n\n"a pig"\n'
        '{"Caption": "ein Bär", "id": 4}\n{"prompt": ""}\n',
        encoding="utf-8",
    )
    assert read_prompts(str(path)) == ["a fox", "an\nowl", "a pig", "ein Bär"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"promt": "a"}', "line 2 holds no prompt; expected a string, or an object with a string"),
        ('{"prompt": 3}', "line 2 holds no prompt"),
        ("[1]", "line 2 holds no prompt"),
        ("a fox", "line 2 is no JSON: Expecting value"),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'"a"\n{line}\n')
    with pytest.raises(DistillError, match=message) as caught:
        read_prompts(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "prompts"])
def test_unusable_files_are_one_clear_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DistillError, match="cannot be read: No such file"):
        read_prompts(str(path))
    path.write_text(" \n\n")
    with pytest.raises(DistillError, match=f"{name}: no prompt in it; expected at least one"):
        read_prompts(str(path))
    path.write_bytes(b"a\xff\xfe\x00")
    with pytest.raises(DistillError, match="is not UTF-8 text, from byte 1: save it as UTF-8"):
        read_prompts(str(path))


def test_a_relative_path_that_is_not_there_is_no_dataset() -> None:
    with pytest.raises(DistillError, match=r"prompt file nowhere/prompts.txt cannot be read"):
        read_prompts("nowhere/prompts.txt")
    with pytest.raises(DistillError, match="recipe key prompts is empty"):
        read_prompts("")


@pytest.mark.skipif(INSTALLED, reason="the library datasets is installed")
def test_a_dataset_without_the_library_says_what_to_install() -> None:
    with pytest.raises(DistillError, match=r"needs the library datasets .*: pip install datasets"):
        read_prompts("owner/name")


@needs_datasets
@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_text("id,caption\n1,a fox\n2,an owl\n")
    (folder / "test.csv").write_text("id,caption\n1,a pig\n")
    assert read_prompts(str(folder)) == ["a fox", "an owl"]
    assert read_prompts(f"{folder}:test") == ["a pig"]
    with pytest.raises(DistillError, match='Unknown split "other"'):
        read_prompts(f"{folder}:other")
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("id,words\n1,a fox\n")
    with pytest.raises(DistillError, match="columns are id, words; expected prompt, text or"):
        read_prompts(str(folder))


@needs_datasets
@pytest.mark.filterwarnings("ignore")
def test_a_dataset_that_the_hub_does_not_give_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DistillError, match="no dataset can be loaded") as caught:
        read_prompts("nobody/nothing-of-this-name")
    assert "\n" not in str(caught.value)
