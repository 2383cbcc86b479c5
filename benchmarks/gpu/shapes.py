"""Pipelines of real shapes with random weights, from ``shapes.toml``."""

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Tokenizer

Table = dict[str, Any]


def _merged(table: Table, changes: Table) -> Table:
    changed = {
        key: _merged(table.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return table | changed


def _read() -> dict[str, Table]:
    text = (Path(__file__).parent / "shapes.toml").read_text(encoding="utf-8")
    shapes = {name: {"pipeline": name} | table for name, table in tomllib.loads(text).items()}
    return {
        name: _merged(shapes[table["like"]], table | {"pipeline": table["like"]})
        if "like" in table
        else table
        for name, table in shapes.items()
    }


SHAPES = _read()
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def random_component(table: Table, dtype: torch.dtype) -> Any:
    """One part of a pipeline, its weights in ``dtype``, on torch's default device.

    Tokenizers know single bytes, and no words.
    """
    options = dict(table)
    module, _, name = options.pop("class").rpartition(".")
    kind = getattr(import_module(module), name)
    if issubclass(kind, PreTrainedTokenizerBase):
        symbols = sorted(ByteLevel.alphabet())
        if kind is T5Tokenizer:
            pieces = ["<pad>", "</s>", "<unk>", "▁", *symbols]
            return kind(vocab=[(piece, 0.0) for piece in pieces], **options)
        words = [*symbols, *(f"{each}</w>" for each in symbols), *_SPECIAL]
        return kind(vocab={word: i for i, word in enumerate(words)}, merges=[], **options)
    if issubclass(kind, diffusers.SchedulerMixin):
        return kind(**options)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if issubclass(kind, PreTrainedModel):
            return kind(kind.config_class(**options)).eval()
        return kind(**options).eval()
    finally:
        torch.set_default_dtype(before)


def write_pipeline(name: str, folder: Path, dtype: torch.dtype, *, sliced: bool = False) -> None:
    """Write one of ``SHAPES`` as a diffusers folder; ``sliced``: with few of its layers."""
    shape = SHAPES[name]
    torch.manual_seed(0)
    tables = shape["components"]
    if sliced:
        tables = _merged(tables, shape["slice"])
    components = {key: random_component(table, dtype) for key, table in tables.items()}
    absent = dict.fromkeys(shape["absent"])
    getattr(diffusers, shape["pipeline"])(**components, **absent).save_pretrained(folder)
