"""``cdm-bench``: measure an image server."""

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.errors import BenchError
from benchmarks.load import Load, LoadResult, run_load


def main(argv: list[str] | None = None) -> int:
    """Return 0, or 2 when the server cannot be measured."""
    arguments = _parser().parse_args(argv)
    load = Load(
        url=arguments.url,
        requests=arguments.requests,
        concurrency=arguments.concurrency,
        steps=arguments.steps,
        model=arguments.model,
    )
    console = Console()
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("requests", total=load.requests)
            result = asyncio.run(run_load(load, lambda: progress.advance(task)))
    except BenchError as error:
        print(f"cdm-bench: error: {error}", file=sys.stderr)
        return 2
    console.print(_table(result))
    if arguments.out:
        try:
            _write(result, arguments.out)
        except OSError as error:
            print(f"cdm-bench: error: cannot write {arguments.out}: {error}", file=sys.stderr)
            return 2
    return 0


def _write(result: LoadResult, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(result.json(), encoding="utf-8")
    temporary.replace(path)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
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
