"""``cdm-serve``: check, start Triton, serve, drain, leave nothing behind."""

import argparse
import asyncio
import logging
import socket
import sys
import types
from collections.abc import Sequence
from dataclasses import fields
from typing import Union, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.logging import RichHandler

from cdm_serve.errors import StartError
from cdm_serve.repository import check_repository
from cdm_serve.server import serve
from cdm_serve.settings import Settings
from cdm_serve.triton.wheel import TritonWheel, find_wheel


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after Ctrl-C or SIGTERM, 2 when the server cannot start."""
    settings = parse(arguments)
    console = Console(stderr=True, highlight=False)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        datefmt="%X",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    try:
        with _listen(settings) as listener:
            asyncio.run(serve(settings, _find_triton(settings), listener, console))
    except StartError as error:
        console.print(f"[bold red]cdm-serve:[/] {error}", markup=True, soft_wrap=True)
        return 2
    return 0


def parse(arguments: Sequence[str] | None) -> Settings:
    """The command line; names, types and defaults are those of ``Settings``."""
    parser = argparse.ArgumentParser(
        prog="cdm-serve",
        description="Serve few-step text-to-image models over HTTP, on NVIDIA Triton.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    hints = get_type_hints(Settings, include_extras=True)
    for setting in fields(Settings):
        flag = "--" + setting.name.replace("_", "-")
        hint, text = get_args(hints[setting.name])
        kind = _plain_type(hint)
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            parser.add_argument(
                flag, type=kind, default=setting.default, metavar=_metavar(kind), help=text
            )
    return Settings(**vars(parser.parse_args(arguments)))


def _plain_type(hint: object) -> type:
    """``str`` for ``str | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(choice for choice in get_args(hint) if choice is not type(None))
    assert isinstance(hint, type)
    return hint


def _metavar(kind: type) -> str:
    return {int: "N", float: "SECONDS", str: "TEXT"}.get(kind, "PATH")


def _find_triton(settings: Settings) -> TritonWheel | None:
    if settings.triton is not None:
        return None
    check_repository(settings.model_repository)
    return find_wheel()


def _listen(settings: Settings) -> socket.socket:
    """Take the port before the slow part, so that a taken one is known at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port} ({reason}): "
            "choose another port with --port, or stop what uses it"
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
