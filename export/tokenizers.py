"""The pipeline's tokenizers as files that the ``tokenizers`` package reads alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from export.errors import ExportError

if TYPE_CHECKING:
    from distill.adapters import Sd3Adapter

# Each of these went wrong in some tokenizer: nothing at all, spaces, more tokens than fit,
# other scripts, an emoji of several code points, special tokens spelled out.
PROMPTS = (
    "a fox in the snow",
    "",
    "  A Fox,\tnext to\n a TENT!  ",
    "one two three four five six seven eight nine ten, " * 40,
    "Ünïcödé, straße, naïve façade — “quoted”",
    "狐狸在雪地里、カメラ、여우",
    "a 🦊 and a 👩‍🚀 under a ☀️",
    "<|startoftext|>fox<|endoftext|></s><pad>!",
)


@dataclass(frozen=True)
class PipelineTokenizer:
    """One of the pipeline's tokenizers and the shape it is called with."""

    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    length: int
    pad_id: int

    def ids(self, prompts: list[str]) -> list[list[int]]:
        """The ids exactly as the pipeline's ``encode_prompt`` makes them."""
        encoded = self.tokenizer(
            prompts, padding="max_length", max_length=self.length, truncation=True
        )
        ids: list[list[int]] = encoded.input_ids
        return ids


def pipeline_tokenizers(adapter: Sd3Adapter) -> list[PipelineTokenizer]:
    """In the order of the text encoder graph's inputs: CLIP-L, CLIP-G and, if present, T5."""
    pipeline = adapter.pipeline
    lengths = [
        (pipeline.tokenizer, pipeline.tokenizer_max_length),
        (pipeline.tokenizer_2, pipeline.tokenizer_max_length),
        (pipeline.tokenizer_3, adapter.max_sequence_length),
    ]
    return [
        PipelineTokenizer(tokenizer, length, tokenizer.pad_token_id)
        for tokenizer, length in lengths
        if tokenizer is not None
    ]


def write_tokenizers(adapter: Sd3Adapter, folder: Path) -> list[Path]:
    """Write ``tokenizer_0.json``, ``tokenizer_1.json``..., without truncation and padding.

    Whoever reads them sets both, as ``load_tokenizer`` does.

    Raises:
        ExportError: a file does not give the pipeline's ids for every one of ``PROMPTS``.
    """
    paths = []
    for i, source in enumerate(pipeline_tokenizers(adapter)):
        path = folder / f"tokenizer_{i}.json"
        _write(source, path)
        _check(source, path)
        paths.append(path)
    return paths


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


def load_tokenizer(path: Path, length: int, pad_id: int) -> Tokenizer:
    """Read a written tokenizer the way serving does."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad_id)
    return tokenizer


def _check(source: PipelineTokenizer, path: Path) -> None:
    tokenizer = load_tokenizer(path, source.length, source.pad_id)
    for prompt, expected in zip(PROMPTS, source.ids(list(PROMPTS)), strict=True):
        if tokenizer.encode(prompt).ids != expected:
            raise ExportError(
                f"{path.name} does not give the pipeline's token ids for {prompt[:40]!r}; "
                f"{type(source.tokenizer).__name__} does more than its tokenizer.json says"
            )
