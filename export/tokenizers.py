"""The pipeline's tokenizers as files that the ``tokenizers`` package reads alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.errors import ExportError
from export.quotation import pieces

# Each of these went wrong in some tokenizer: nothing at all, spaces, more tokens than fit,
# other scripts, an emoji of several code points, special tokens spelled out, quotation marks.
PROMPTS = (
    "a fox in the snow",
    "",
    "  A Fox,\tnext to\n a TENT!  ",
    "one two three four five six seven eight nine ten, " * 60,
    "Ünïcödé, straße, naïve façade — “quoted”",
    "狐狸在雪地里、カメラ、여우",
    "a 🦊 and a 👩‍🚀 under a ☀️",
    "<|startoftext|>fox<|endoftext|></s><pad>!",
    "a sign that says 'Don't panic', \"狐 fox\" and \u2018it\u2019s “open”",
)


@dataclass(frozen=True)
class Tokens:
    """Ids of one tokenizer and 1 where they are no padding, (B, L) int64 both."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


@dataclass(frozen=True)
class PipelineTokenizer:
    """One of the pipeline's tokenizers and how it is called.

    Attributes:
        encode: the tokens exactly as the pipeline makes them.
        quotation: what stands in quotation marks is tokenized character by character, as
            ``export.quotation`` says.
    """

    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    length: int
    pad_id: int
    encode: Callable[[list[str]], Tokens]
    quotation: bool = False


class WrittenTokenizer:
    """A written file, read the way serving does."""

    def __init__(self, path: Path, source: PipelineTokenizer) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._length, self._pad_id = source.length, source.pad_id
        self._quotation = source.quotation
        if not source.quotation:
            self._tokenizer.enable_truncation(source.length)
            self._tokenizer.enable_padding(length=source.length, pad_id=source.pad_id)

    def __call__(self, prompts: list[str]) -> Tokens:
        """The tokens of every prompt."""
        if self._quotation:
            rows = [self._piecewise(prompt) for prompt in prompts]
        else:
            encodings = self._tokenizer.encode_batch(prompts)
            rows = [(each.ids, each.attention_mask) for each in encodings]
        return Tokens(np.array([ids for ids, _ in rows]), np.array([mask for _, mask in rows]))

    def _piecewise(self, prompt: str) -> tuple[list[int], list[int]]:
        encodings = self._tokenizer.encode_batch(pieces(prompt), add_special_tokens=False)
        ids = [token for encoding in encodings for token in encoding.ids][: self._length]
        missing = self._length - len(ids)
        return ids + [self._pad_id] * missing, [1] * len(ids) + [0] * missing


def write_tokenizers(sources: list[PipelineTokenizer], folder: Path) -> list[Path]:
    """Write ``tokenizer_0.json``, ``tokenizer_1.json``..., without truncation and padding.

    Whoever reads them sets both, as ``WrittenTokenizer`` does.

    Raises:
        ExportError: a file does not give the pipeline's tokens for every one of ``PROMPTS``.
    """
    paths = []
    for i, source in enumerate(sources):
        path = folder / f"tokenizer_{i}.json"
        _write(source, path)
        _check(source, path)
        paths.append(path)
    return paths


def read_tokenizers(sources: list[PipelineTokenizer], folder: Path) -> list[WrittenTokenizer]:
    """The files that ``write_tokenizers`` wrote."""
    return [
        WrittenTokenizer(folder / f"tokenizer_{i}.json", source) for i, source in enumerate(sources)
    ]


def _write(source: PipelineTokenizer, path: Path) -> None:
    backend = getattr(source.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"{type(source.tokenizer).__name__} has no fast form; "
            "save the student's tokenizers with tokenizer.json files"
        )
    tokenizer = Tokenizer.from_str(backend.to_str())  # a copy: the pipeline goes on using its own
    # Otherwise the file would depend on how the pipeline was called last.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def _check(source: PipelineTokenizer, path: Path) -> None:
    written, expected = WrittenTokenizer(path, source), source.encode(list(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        found = written([prompt])
        same_ids = np.array_equal(found.ids[0], expected.ids[i])
        if not same_ids or not np.array_equal(found.mask[0], expected.mask[i]):
            raise ExportError(
                f"{path.name} does not give the pipeline's token ids for {prompt[:40]!r}; "
                f"{type(source.tokenizer).__name__} does more than its tokenizer.json says"
            )
