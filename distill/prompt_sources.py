"""Where prompts come from: a text file, JSON lines, or a Hugging Face dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from distill.errors import DistillError

_KEYS = ("prompt", "text", "caption")
_DATASET = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]%:+-]+)?")


def read_prompts(source: str) -> list[str]:
    """All prompts of a source, without blank ones.

    Args:
        source: a text file, one prompt a line; a ``.jsonl`` file, each line a string or an object
            with a ``prompt``, ``text`` or ``caption``; or a dataset with a column of such a name:
            ``owner/name``, ``owner/name:split`` (the split is ``train`` if none is named), or the
            folder of one.

    Raises:
        DistillError: it cannot be read, or there is no prompt in it.
    """
    if not source:
        raise DistillError("recipe key prompts is empty; expected a file or a dataset")
    path = Path(source)
    if is_dataset(source):
        prompts = _dataset(source)
    elif path.suffix == ".jsonl":
        prompts = _json_lines(path)
    else:
        prompts = _lines(path)
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise DistillError(f"prompts {source}: no prompt in it; expected at least one")
    return prompts


def is_dataset(source: str) -> bool:
    """Whether the library ``datasets`` is to read it: a folder, or no file and named like one."""
    path = Path(source)
    if path.is_file() or path.suffix in (".txt", ".jsonl"):
        return False
    return Path(source.partition(":")[0]).is_dir() or bool(_DATASET.fullmatch(source))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DistillError(
            f"prompt file {path} cannot be read: {error.strerror}; expected a text file, a .jsonl "
            "file or a Hugging Face dataset (owner/name)"
        ) from error
    except UnicodeDecodeError as error:
        raise DistillError(
            f"prompt file {path} is not UTF-8 text, from byte {error.start}: save it as UTF-8"
        ) from error


def _json_lines(path: Path) -> list[str]:
    prompts = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DistillError(f"{path} line {number} is no JSON: {error}") from error
        prompt = _of_object(entry) if isinstance(entry, dict) else entry
        if not isinstance(prompt, str):
            raise DistillError(
                f"{path} line {number} holds no prompt; expected a string, or an object with a "
                f"string {_either()}"
            )
        prompts.append(prompt)
    return prompts


def _of_object(entry: dict[str, Any]) -> Any:
    key = _prompt_key(entry)
    return None if key is None else entry[key]


def _prompt_key(names: Iterable[str]) -> str | None:
    """The first of the known names, in whatever case it is written."""
    known = {name.lower(): name for name in names}
    return next((known[key] for key in _KEYS if key in known), None)


def _dataset(source: str) -> list[str]:
    name, _, split = source.partition(":")
    try:
        # Imported by name: an optional library that the installation does not bring.
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise DistillError(
            f"prompts {source}: a dataset needs the library datasets ({_first_line(error)}): "
            "pip install datasets, or give a text or .jsonl file"
        ) from error
    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # whatever the hub, the network or the files lead to
        raise DistillError(
            f"prompts {source}: no file here, and no dataset can be loaded: {_first_line(error)}"
        ) from error
    column = _prompt_key(rows.column_names)
    if column is None:
        names = ", ".join(rows.column_names)
        raise DistillError(f"prompts {source}: its columns are {names}; expected {_either()}")
    return _strings(rows[column], f"prompts {source}: column {column}")


def _strings(values: Iterable[Any], where: str) -> list[str]:
    strings = list(values)
    for row, value in enumerate(strings):
        if not isinstance(value, str):
            raise DistillError(f"{where}, row {row}: expected a string, not {value!r:.60}")
    return strings


def _either() -> str:
    return " or ".join((", ".join(_KEYS[:-1]), _KEYS[-1]))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
