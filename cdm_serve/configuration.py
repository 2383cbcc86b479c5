"""The command line of ``cdm-serve``, made from the fields of ``Settings``; wrong ones in a line."""

import argparse
import os
import tomllib
from collections.abc import Sequence
from typing import Any, get_origin

from pydantic import ValidationError

from cdm_serve.errors import StartError
from cdm_serve.settings import PREFIX, Settings


def load_settings(arguments: Sequence[str] | None, **given: Any) -> Settings:
    """All settings; ``given`` ones hold as if they were flags.

    Raises:
        StartError: there is no such setting, or its value is not what it must be.
    """
    for variable in os.environ:
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name not in Settings.model_fields:
            raise StartError(f"{variable} is no setting; `cdm-serve --help` lists them")
    flags = vars(_parser().parse_args(arguments)) | given
    file = flags.get("config", os.environ.get(PREFIX + "CONFIG"))
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise StartError(_complaint(error, flags, file)) from error
    except OSError as error:
        raise StartError(f"cannot read the settings {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartError(f"{file} is not valid TOML: {error}") from error


def _complaint(error: ValidationError, flags: dict[str, Any], file: object) -> str:
    """The first thing that is wrong, and where it was said."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if name in flags:
        where = "--" + name.replace("_", "-")
    elif PREFIX + name.upper() in os.environ:
        where = PREFIX + name.upper()
    else:
        where = f"{file}: {name}"
    if first["type"] == "extra_forbidden":
        return f"{where} is no setting; `cdm-serve --help` lists them"
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "it must")
    return f"{where} is {first['input']!r}: {message}"


def _parser() -> argparse.ArgumentParser:
    """Values stay texts: ``Settings`` parses them, as those of the environment."""
    parser = argparse.ArgumentParser(
        prog="cdm-serve",
        usage="cdm-serve [doctor] [OPTIONS]",
        description="Serve few-step text-to-image models over HTTP, on NVIDIA Triton; doctor says "
        "whether it would, what this machine has, and what to run for what is missing.",
        epilog="Each setting may also come from the environment (CDM_SERVE_PORT=9000) or from the "
        "TOML file (port = 9000); a flag wins over the environment, that over the file.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=33),
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        shown, default, text = field.json_schema_extra, field.default, field.description
        if not isinstance(shown, dict):
            continue
        if default is not None and default is not False and default not in ("", (), {}):
            text = f"{text} ({default:g})" if isinstance(default, float) else f"{text} ({default})"
        group = str(shown["group"])
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        options: dict[str, Any] = {"metavar": shown["value"]}
        if field.annotation is bool:
            options = {"action": "store_true"}
        elif get_origin(field.annotation) in (tuple, dict):
            options["action"] = "append"
        groups[group].add_argument("--" + name.replace("_", "-"), help=text, **options)
    groups["other"].add_argument("-h", "--help", action="help", help="show this and end")
    return parser
