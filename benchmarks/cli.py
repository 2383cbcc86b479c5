"""``cdm-bench``: measure an image server, and a distillation."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.errors import BenchError
from benchmarks.files import write_whole
from benchmarks.load import Load, LoadResult, run_load
from benchmarks.variants import VARIANTS
from distill.errors import DistillError


def main(argv: list[str] | None = None) -> int:
    """Return 0, or 2 when the user can mend what is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments, Console())
    except (BenchError, DistillError) as error:
        print(f"cdm-bench: error: {error}", file=sys.stderr)
        return 2
    return code


def _load(arguments: argparse.Namespace, console: Console) -> int:
    load = Load(
        url=arguments.url,
        requests=arguments.requests,
        concurrency=arguments.concurrency,
        steps=arguments.steps,
        model=arguments.model,
    )
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("requests", total=load.requests)
        result = asyncio.run(run_load(load, lambda: progress.advance(task)))
    console.print(_table(result))
    if arguments.out:
        write_whole(arguments.out, result.json())
    return 0


def _training(command: str) -> Callable[[argparse.Namespace, Console], int]:
    """A command that needs torch, imported when it runs."""

    def run(arguments: argparse.Namespace, console: Console) -> int:
        # Read while they are imported; what they warn of is not needed here.
        for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(library, "error")
        try:
            from benchmarks import training
        except ModuleNotFoundError as error:
            raise BenchError(f"{error.name} is missing: pip install 'cdm-serve[distill]'") from None
        code: int = getattr(training, command)(arguments, console)
        return code

    return run


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 2")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdm-bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser("load", help="send a bounded closed-loop load")
    load.add_argument("url", help="root of the server, such as http://127.0.0.1:8000")
    load.add_argument("--requests", type=_positive, default=Load.requests)
    load.add_argument("--concurrency", type=_positive, default=Load.concurrency)
    load.add_argument("--steps", type=_positive, help="num_inference_steps (server's default)")
    load.add_argument("--model", help="a name from /v1/models (server's default)")
    load.add_argument("--out", type=Path, metavar="FILE.json")
    load.set_defaults(run=_load)

    distill = commands.add_parser("distill", help="a student update against the released form")
    distill.add_argument("--n-max", type=_positive, default=28)
    distill.add_argument("--batch", type=_positive, default=16)
    distill.add_argument("--updates", type=_several, default=500, help="counted, of each form")
    distill.add_argument("--pairs", type=_several, default=30, help="timed, of each form")
    distill.add_argument("--out", type=Path, metavar="FILE.json")
    distill.set_defaults(run=_training("distill"))

    ablation = commands.add_parser("ablation", help="the method's parts on the emoji teacher")
    ablation.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    ablation.add_argument("--updates", type=_positive, help="of each variant (the recipe's)")
    ablation.add_argument("--batch", type=_positive, help="(the recipe's)")
    ablation.add_argument("--n-max", type=_positive, help="(the recipe's)")
    ablation.add_argument("--only", nargs="+", default=list(VARIANTS), metavar="VARIANT")
    ablation.add_argument("--judge", type=Path, default=Path("models/emoji-judge"))
    ablation.add_argument("--pictures", type=_several, default=200, help="at each number of steps")
    ablation.add_argument("--subjects", type=_several, default=48, help="that the teacher knows")
    ablation.add_argument("--guidance", type=float, default=3.5, help="of the teacher's pictures")
    ablation.set_defaults(run=_training("ablation"))
    for command in (distill, ablation):
        command.add_argument("--recipe", type=Path, default=Path("distill/recipes/emoji.toml"))
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a recipe key"
        )
    return parser


def _table(result: LoadResult) -> Table:
    table = Table(title=f"{result.load.url}, {result.load.concurrency} clients")
    for name in ("answered", "failed", "images/s", *(f"{p} ms" for p in result.latency_ms)):
        table.add_column(name, justify="right")
    table.add_row(
        str(result.answered),
        str(result.failed),
        f"{result.images_per_second:.1f}",
        *(f"{value:.1f}" for value in result.latency_ms.values()),
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
