"""Prompts to token ids, exactly as the student's pipeline does it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cdm_serve.engine.manifest import TokenizerFile


@dataclass(frozen=True)
class Tokens:
    """One row a prompt: ``ids[k]`` is (B, L_k); ``counts`` are the first's without padding."""

    ids: tuple[NDArray[np.int64], ...]
    counts: tuple[int, ...]


class PromptTokenizer:
    """All tokenizers of a model, side by side."""

    def __init__(self, files: tuple[TokenizerFile, ...]) -> None:
        self._tokenizers = []
        for file in files:
            tokenizer = Tokenizer.from_file(str(file.path))
            tokenizer.enable_truncation(file.length)
            tokenizer.enable_padding(length=file.length, pad_id=file.pad_id)
            self._tokenizers.append(tokenizer)

    def __call__(self, prompts: list[str]) -> Tokens:
        """Ids of every prompt from every tokenizer."""
        rows = [tokenizer.encode_batch(prompts) for tokenizer in self._tokenizers]
        return Tokens(
            ids=tuple(np.array([row.ids for row in batch], dtype=np.int64) for batch in rows),
            counts=tuple(sum(row.attention_mask) for row in rows[0]),
        )
