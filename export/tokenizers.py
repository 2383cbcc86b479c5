"""The pipeline's tokenizers as files that the ``tokenizers`` package reads alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cdm_serve.engine.manifest import TokenizerFile
from cdm_serve.engine.tokenizers import PromptTokenizer
from export.errors import ExportError

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

_MARK = "PROMPT"  # in no template

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids of one tokenizer and 1 where they are no padding, (B, L) both."""


@dataclass(frozen=True)
class PipelineTokenizer:
    """One of the pipeline's tokenizers and how it is called.

    Attributes:
        encode: the tokens exactly as the pipeline makes them.
        quotation: what stands in quotation marks is tokenized character by character, as
            ``cdm_serve.engine.quotation`` says.
        template: text before and behind each prompt.
    """

    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    length: int
    encode: Callable[[list[str]], Encoded]
    quotation: bool = False
    template: tuple[str, str] = ("", "")

    @property
    def pad_id(self) -> int:
        """What fills up to ``length``."""
        return int(self.tokenizer.pad_token_id)


def padded(
    tokenizer: Any, length: int, form: Callable[[str], str] = lambda prompt: prompt
) -> PipelineTokenizer:
    """A tokenizer that the pipeline calls with prompts as they are, cut or padded to a length.

    ``form`` is what it puts around a prompt.
    """

    def encode(prompts: list[str]) -> Encoded:
        texts = [form(prompt) for prompt in prompts]
        encoded = tokenizer(texts, padding="max_length", max_length=length, truncation=True)
        return np.array(encoded.input_ids), np.array(encoded.attention_mask)

    before, _, behind = form(_MARK).partition(_MARK)
    return PipelineTokenizer(tokenizer, length, encode, template=(before, behind))


def chat(tokenizer: Any, length: int, thinking: bool) -> PipelineTokenizer:
    """A tokenizer whose prompts are a user's message of a chat."""

    def form(prompt: str) -> str:
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        return text

    return padded(tokenizer, length, form)


def write_tokenizers(sources: list[PipelineTokenizer], folder: Path) -> list[Path]:
    """Write ``tokenizer_0.json``, ``tokenizer_1.json``..., without truncation and padding.

    Raises:
        ExportError: serving would not make the pipeline's tokens of one of ``PROMPTS``.
    """
    paths = [folder / f"tokenizer_{i}.json" for i in range(len(sources))]
    for source, path in zip(sources, paths, strict=True):
        _write(source, path)
        _check(source, path)
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


def _check(source: PipelineTokenizer, path: Path) -> None:
    file = TokenizerFile(path, source.length, source.pad_id, source.quotation, source.template)
    written, expected = PromptTokenizer((file,))(list(PROMPTS)), source.encode(list(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        found = (written.ids[0][i], written.masks[0][i])
        if not all(np.array_equal(a, b[i]) for a, b in zip(found, expected, strict=True)):
            raise ExportError(
                f"{path.name} does not give the pipeline's token ids for {prompt[:40]!r}; "
                f"{type(source.tokenizer).__name__} does more than its tokenizer.json says"
            )
