"""Prompts to token ids, exactly as the student's pipeline does it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cdm_serve.engine.manifest import TokenizerFile
from cdm_serve.engine.quotation import pieces


@dataclass(frozen=True)
class Tokens:
    """One row a prompt: ``ids[k]`` and ``masks[k]`` are (B, L_k), a mask is 0 where padding is.

    ``counts`` are the first's ids without padding.
    """

    ids: tuple[NDArray[np.int64], ...]
    masks: tuple[NDArray[np.int64], ...]
    counts: tuple[int, ...]


class PromptTokenizer:
    """All tokenizers of a model, side by side."""

    def __init__(self, files: tuple[TokenizerFile, ...]) -> None:
        self._tokenizers = [_FileTokenizer(file) for file in files]

    def __call__(self, prompts: list[str]) -> Tokens:
        """Ids of every prompt from every tokenizer."""
        made = [tokenizer(prompts) for tokenizer in self._tokenizers]
        counts = made[0][1].sum(axis=1).tolist()
        return Tokens(tuple(ids for ids, _ in made), tuple(mask for _, mask in made), tuple(counts))


class _FileTokenizer:
    def __init__(self, file: TokenizerFile) -> None:
        self._file = file
        self._tokenizer = Tokenizer.from_file(str(file.path))
        if not file.quotation:
            self._tokenizer.enable_truncation(file.length)
            self._tokenizer.enable_padding(length=file.length, pad_id=file.pad_id)

    def __call__(self, prompts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and mask, (B, L) both."""
        if self._file.quotation:
            rows = [self._piecewise(prompt) for prompt in prompts]
        else:
            before, behind = self._file.template
            batch = self._tokenizer.encode_batch([before + each + behind for each in prompts])
            rows = [(row.ids, row.attention_mask) for row in batch]
        ids, masks = zip(*rows, strict=True)
        return np.array(ids, dtype=np.int64), np.array(masks, dtype=np.int64)

    def _piecewise(self, prompt: str) -> tuple[list[int], list[int]]:
        parts = self._tokenizer.encode_batch(pieces(prompt), add_special_tokens=False)
        ids = [token for part in parts for token in part.ids][: self._file.length]
        padding = self._file.length - len(ids)
        return ids + [self._file.pad_id] * padding, [1] * len(ids) + [0] * padding
