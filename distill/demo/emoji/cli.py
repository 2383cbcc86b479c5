"""Make the emoji teacher, and look at what it draws.

A training goes on from its last checkpoint when the same call is made again; --minutes ends a call.
"""

import argparse
import inspect
import sys
from dataclasses import replace
from types import UnionType
from typing import get_args

import torch

from distill.cli import whole_number
from distill.demo.emoji.commands import COMMANDS
from distill.demo.emoji.training import Plan
from distill.errors import DistillError


def _positive(text: str) -> float:
    """An argparse type for a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


_PLANNED = {
    "steps": whole_number(1),
    "batch": whole_number(1),
    "rate": _positive,
    "minutes": _positive,
}


def _parser() -> argparse.ArgumentParser:
    """A command for each function, an option for each of its parameters."""
    parser = argparse.ArgumentParser(prog="python -m distill.demo.emoji", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for function in COMMANDS:
        text = inspect.getdoc(function) or ""
        first = text.splitlines()[0]
        command = commands.add_parser(function.__name__, help=first, description=text)
        command.set_defaults(run=function)
        command.add_argument("--threads", type=whole_number(1), help="of the CPU (all cores)")
        for name, parameter in inspect.signature(function).parameters.items():
            kind, default = parameter.annotation, parameter.default
            if default is parameter.empty:
                command.add_argument(name, type=kind)
            elif kind is Plan:
                command.set_defaults(plan=default)
                for each, type_ in _PLANNED.items():
                    command.add_argument(f"--{each}", type=type_, default=getattr(default, each))
            else:
                if isinstance(kind, UnionType):  # with None
                    kind = get_args(kind)[0]
                kind = getattr(kind, "__metadata__", [kind])[0]
                option = f"--{name.rstrip('_')}"
                command.add_argument(option, dest=name, type=kind, default=default)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = vars(_parser().parse_args(argv))
    run, threads = arguments.pop("run"), arguments.pop("threads")
    if "plan" in arguments:
        planned = {each: arguments.pop(each) for each in _PLANNED}
        arguments["plan"] = replace(arguments["plan"], **planned)
    if threads:
        torch.set_num_threads(threads)
    try:
        run(**arguments)
    except DistillError as error:
        print(f"distill.demo.emoji: {error}", file=sys.stderr)
        return 2
    return 0
