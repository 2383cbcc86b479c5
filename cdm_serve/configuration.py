"""Settings from four places: a flag, else the environment, else a TOML file, else the default."""

import argparse
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cdm_serve.errors import StartError
from cdm_serve.settings import Settings

PREFIX = "CDM_SERVE_"
SECRETS = {"api_keys"}  # a flag would show it to everyone who lists processes
WORDS = dict.fromkeys(["1", "true", "yes", "on"], True)
WORDS |= dict.fromkeys(["0", "false", "no", "off"], False)


@dataclass(frozen=True)
class Option:
    """One field of ``Settings`` as the outside sees it."""

    name: str
    kind: type
    choices: tuple[str, ...]
    group: str
    text: str
    default: Any

    @classmethod
    def of(cls, setting: "Field[Any]", hint: Any) -> "Option":
        """From the dataclass field and its ``Annotated`` type."""
        plain, group, text = get_args(hint)
        if get_origin(plain) in (Union, types.UnionType):
            plain = next(choice for choice in get_args(plain) if choice is not type(None))
        choices = get_args(plain) if get_origin(plain) is Literal else ()
        assert setting.default is not MISSING
        return cls(setting.name, str if choices else plain, choices, group, text, setting.default)

    def parse(self, value: object, where: str) -> Any:
        """A value of the environment (text) or of the file (of its type).

        Raises:
            StartError: it is not what this setting takes.
        """
        if isinstance(value, str):
            value = self._from_text(value)
        elif self.kind is float and type(value) is int:
            value = float(value)
        # To Python true is a whole number; to those who write settings it is not.
        if not isinstance(value, self.kind) or (type(value) is bool and self.kind is not bool):
            kinds = {int: "a whole number", float: "a number", bool: "true or false"}
            raise StartError(f"{where} is {value!r}: expected {kinds.get(self.kind, 'text')}")
        if self.choices and value not in self.choices:
            raise StartError(f"{where} is {value!r}: expected {' or '.join(self.choices)}")
        return value

    def _from_text(self, text: str) -> object:
        """The value that a text means, else the text."""
        if self.kind is bool:
            return WORDS.get(text.lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text


def _options() -> list[Option]:
    hints = get_type_hints(Settings, include_extras=True)
    return [Option.of(setting, hints[setting.name]) for setting in fields(Settings)]


def load_settings(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Settings:
    """All settings, each from the first place that has it.

    Raises:
        StartError: the environment or the file holds something that is no setting.
    """
    options = {option.name: option for option in _options()}
    flags = vars(_parser(list(options.values())).parse_args(arguments))
    file = flags.pop("config", None) or environment.get(PREFIX + "CONFIG")
    values: dict[str, Any] = {}
    for name, value in (_read(Path(file)) if file else {}).items():
        if name not in options:
            raise StartError(f"{file}: {name} is no setting; `cdm-serve --help` lists them")
        values[name] = options[name].parse(value, f"{file}: {name}")
    for variable, value in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or name == "config":
            continue
        if name not in options:
            raise StartError(f"{variable} is no setting; `cdm-serve --help` lists them")
        values[name] = options[name].parse(value, variable)
    return Settings(**(values | flags))


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"cannot read the settings {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartError(f"{file} is not valid TOML: {error}") from error


def _parser(options: list[Option]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cdm-serve",
        usage="cdm-serve [OPTIONS]",
        description="Serve few-step text-to-image models over HTTP, on NVIDIA Triton.",
        epilog="Each setting may also come from the environment (CDM_SERVE_PORT=9000) or from the "
        "TOML file (port = 9000); a flag wins over the environment, that over the file.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=33),
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    groups = {option.group: parser.add_argument_group(option.group) for option in options}
    for option in options:
        text = option.text
        if option.default not in (None, False):
            text += f" ({option.default})"
        flag = "--" + option.name.replace("_", "-")
        if option.name in SECRETS:
            continue
        if option.kind is bool:
            groups[option.group].add_argument(flag, action="store_true", help=text)
        else:
            groups[option.group].add_argument(
                flag,
                type=option.kind,
                choices=option.choices or None,
                metavar="|".join(option.choices) or _metavar(option),
                help=text,
            )
    other = parser.add_argument_group("other")
    other.add_argument("--config", metavar="FILE", help="TOML file with settings")
    other.add_argument("-h", "--help", action="help", help="show this and end")
    return parser


def _metavar(option: Option) -> str:
    return {int: "N", float: "SECONDS", str: "TEXT"}.get(option.kind, "PATH")
