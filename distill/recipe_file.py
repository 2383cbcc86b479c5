"""Read a recipe from TOML, with overrides, and say what is wrong with it in one line."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from distill.errors import DistillError
from distill.recipe import Recipe

T = TypeVar("T")


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a TOML file, after ``key=value`` overrides such as ``loss.alpha=3``.

    Raises:
        DistillError: no such file, no TOML, an unknown or missing key, a wrong type or value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DistillError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DistillError(f"recipe {path} is no valid TOML: {error}") from error
    for override in overrides or []:
        _override(table, override)
    return fill(Recipe, table)


def fill(kind: type[T], table: dict[str, Any], prefix: str = "") -> T:
    """A dataclass from a table of its fields, nested dataclasses from nested tables.

    Raises:
        DistillError: names the offending key and what was expected.
    """
    types = get_type_hints(kind)
    for key in table:
        if key not in types:
            raise DistillError(
                f"unknown recipe key {prefix}{key}; known: "
                + ", ".join(f"{prefix}{name}" for name in types)
            )
    values = {key: _convert(types[key], value, prefix + key) for key, value in table.items()}
    for needed in fields(kind):  # type: ignore[arg-type]  # every caller passes a dataclass
        has_default = needed.default is not MISSING or needed.default_factory is not MISSING
        if needed.name not in table and not has_default:
            raise DistillError(f"recipe key {prefix}{needed.name} is missing")
    return kind(**values)


def _convert(kind: Any, value: Any, key: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise DistillError(f"recipe key {key} must be a table, not {value!r}")
        return fill(kind, value, f"{key}.")  # type: ignore[arg-type]  # a class, not an instance
    if get_origin(kind) is UnionType:  # with None, which TOML has not: the key is left out
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = " or ".join(repr(choice) for choice in get_args(kind))
            raise DistillError(f"recipe key {key} must be {choices}, not {value!r}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # bool is an int in Python, not in a recipe
        names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        name = names[kind]
        raise DistillError(f"recipe key {key} must be {name}, not {value!r}")
    return value


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise DistillError(f"--set {override!r} must be key=value, such as loss.alpha=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # so that a plain string needs no quotes
    *path, last = key.strip().split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise DistillError(f"--set {override!r}: {part} is no table")
    table[last] = value
