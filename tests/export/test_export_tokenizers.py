import copy
import random
from pathlib import Path
from typing import Any

import pytest
from pipelines import tiny_sd3
from tokenizers import Tokenizer

from distill.adapters import Sd3Adapter, load_adapter
from export.errors import ExportError
from export.tokenizers import PROMPTS, load_tokenizer, pipeline_tokenizers, write_tokenizers


def prompts() -> list[str]:
    """The command's own and some of random characters and lengths."""
    draw = random.Random(0)
    alphabet = "abcXYZ  019.,'!?-é🦊狐\n\t<|>"
    return [*PROMPTS] + ["".join(draw.choices(alphabet, k=k)) for k in range(0, 120, 3)]


def test_exported_files_give_the_pipelines_ids(
    exported: Path, manifest: dict[str, Any], adapter: Sd3Adapter
) -> None:
    pipeline = adapter.pipeline
    entries = manifest["tokenizers"]
    for entry, original in zip(entries, [pipeline.tokenizer, pipeline.tokenizer_2], strict=True):
        tokenizer = Tokenizer.from_file(str(exported / "1" / entry["file"]))
        tokenizer.enable_truncation(entry["length"])
        tokenizer.enable_padding(length=entry["length"], pad_id=entry["pad_id"])
        for prompt in prompts():
            expected = original(prompt, padding="max_length", max_length=24, truncation=True)
            assert tokenizer.encode(prompt).ids == expected.input_ids
    assert [entry["pad_id"] for entry in entries] == [513, 0]  # the second pads with "!"


def test_t5_is_as_long_as_the_students_sequences(tmp_path: Path) -> None:
    adapter = load_adapter(str(tiny_sd3(tmp_path / "t5", t5=True)), max_sequence_length=16)
    paths = write_tokenizers(adapter, tmp_path)
    assert [path.name for path in paths] == [f"tokenizer_{i}.json" for i in range(3)]
    source = pipeline_tokenizers(adapter)[2]
    assert source.length == 16
    tokenizer = load_tokenizer(paths[2], 16, source.pad_id)
    expected = adapter.pipeline.tokenizer_3(
        prompts(), padding="max_length", max_length=16, truncation=True
    ).input_ids
    assert [encoding.ids for encoding in tokenizer.encode_batch(prompts())] == expected


def test_the_file_does_not_depend_on_the_last_call(adapter: Sd3Adapter, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_tokenizers(adapter, tmp_path)]
    adapter.pipeline.tokenizer("a fox", padding="max_length", max_length=7, truncation=True)
    assert [path.read_bytes() for path in write_tokenizers(adapter, tmp_path)] == first


def test_a_tokenizer_that_does_more_than_its_file_is_refused(
    adapter: Sd3Adapter, tmp_path: Path
) -> None:
    other = copy.copy(adapter)
    other.pipeline = copy.copy(adapter.pipeline)
    other.pipeline.tokenizer = copy.deepcopy(adapter.pipeline.tokenizer)
    other.pipeline.tokenizer.padding_side = "left"
    with pytest.raises(ExportError, match=r"tokenizer_0\.json does not give the pipeline's"):
        write_tokenizers(other, tmp_path)
