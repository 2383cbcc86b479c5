import copy
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from distill.adapters.sd3 import Sd3Adapter
from export.architectures.sd3 import Sd3
from export.errors import ExportError
from export.tokenizers import PROMPTS, write_tokenizers


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
    originals = [pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3]
    for entry, original in zip(entries, originals, strict=True):
        tokenizer = Tokenizer.from_file(str(exported / "1" / entry["file"]))
        tokenizer.enable_truncation(entry["length"])
        tokenizer.enable_padding(length=entry["length"], pad_id=entry["pad_id"])
        for prompt in prompts():
            expected = original(
                prompt, padding="max_length", max_length=entry["length"], truncation=True
            )
            assert tokenizer.encode(prompt).ids == expected.input_ids
    # CLIPs as the pipeline has them, the T5 as long as the student's sequences.
    assert [(e["length"], e["pad_id"]) for e in entries] == [(24, 513), (24, 0), (16, 0)]
    assert [entry["quotation"] for entry in entries] == [None] * 3


def test_the_file_does_not_depend_on_the_last_call(adapter: Sd3Adapter, tmp_path: Path) -> None:
    sources = Sd3(adapter).tokenizers()
    first = [path.read_bytes() for path in write_tokenizers(sources, tmp_path)]
    adapter.pipeline.tokenizer("a fox", padding="max_length", max_length=7, truncation=True)
    assert [path.read_bytes() for path in write_tokenizers(sources, tmp_path)] == first


def test_a_tokenizer_that_does_more_than_its_file_is_refused(
    adapter: Sd3Adapter, tmp_path: Path
) -> None:
    other = copy.copy(adapter)
    other.pipeline = copy.copy(adapter.pipeline)
    other.pipeline.tokenizer = copy.deepcopy(adapter.pipeline.tokenizer)
    other.pipeline.tokenizer.padding_side = "left"
    with pytest.raises(ExportError, match=r"tokenizer_0\.json does not give the pipeline's"):
        write_tokenizers(Sd3(other).tokenizers(), tmp_path)
