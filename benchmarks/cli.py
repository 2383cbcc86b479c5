"""``cdm-bench``: measure an image server, an engine, a distillation, a GPU."""

import argparse
import importlib
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.errors import BenchError
from cdm_serve.errors import StartError
from distill.errors import DistillError
from export.errors import ExportError

Command = Callable[[argparse.Namespace, Console], int]


def main(argv: list[str] | None = None) -> int:
    """Return 0, or 2 when the user can mend what is wrong."""
    arguments = _parser().parse_args(argv)
    run: Command = arguments.run
    # Whatever ends us ends the servers that we started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments, Console())
    except (BenchError, DistillError, ExportError, StartError) as error:
        print(f"cdm-bench: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdm-bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, module: str, extra: str, text: str, more: str = "") -> Any:
        made = commands.add_parser(name, help=text, description=f"{text}. {more}")
        made.set_defaults(run=_later(f"benchmarks.{module}", name, extra))
        made.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            default=Path("runs/bench"),
            help="for COMMAND-MACHINE.json (%(default)s)",
        )
        return made

    load = command(
        "load",
        "load.report",
        "bench",
        "latency against load, every picture checked",
        "Without --clients and --rates: 1, 4 and 16 clients, then a search for the highest Poisson "
        "rate that holds the SLO. A key is read from OPENAI_API_KEY.",
    )
    load.add_argument("url", help="root of the server, such as http://127.0.0.1:8000")
    load.add_argument("--clients", type=_count, nargs="+", metavar="N", help="closed loops")
    load.add_argument("--rates", type=_number, nargs="+", metavar="R", help="Poisson, a second")
    load.add_argument("--search", action="store_true", help="for the highest rate, after these")
    load.add_argument("--slo", type=_number, default=500.0, metavar="MS", help="(%(default)s)")
    load.add_argument("--seconds", type=_number, default=10.0, help="at each load (%(default)s)")
    load.add_argument("--stream", action="store_true", help="and time the first preview")
    load.add_argument("--edits", action="store_true", help="every second request is one")
    load.add_argument("--steps", type=_count, help="num_inference_steps (server's default)")
    load.add_argument("--model", help="a name from /v1/models (server's default)")

    peers = command("peers", "serving.peers.report", "bench", "against the same student elsewhere")
    peers.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="REPOSITORY[:tiny]",
        help="other exports of the student; with :tiny its tiny decoder makes all pictures",
    )
    peers.add_argument("--only", nargs="+", metavar="PEER", help="(all)")
    peers.add_argument("--rounds", type=_count, default=5)
    peers.add_argument("--seconds", type=_number, default=8.0, help="of each load (%(default)s)")
    peers.add_argument("--quick", action="store_true", help="two rounds of a second, no sweep")
    peers.add_argument(
        "--python",
        type=Path,
        default=Path("runs/peers/bin/python"),
        help="of the peers' environment (%(default)s)",
    )

    overhead = command("overhead", "serving.overhead", "bench", "the server against its engine")
    overhead.add_argument("--rounds", type=_count, default=5)
    overhead.add_argument("--seconds", type=_number, default=4.0, help="of each run (%(default)s)")
    overhead.add_argument("--only", nargs="+", metavar="LOAD", help="(all)")

    soak = command("soak", "serving.soak", "bench", "clients that leave, too much work, kills")
    soak.add_argument("--only", nargs="+", metavar="PART", help="(all)")
    soak.add_argument("--requests", type=_count, default=20_000, help="of the first part")
    soak.add_argument("--leaving", type=float, default=0.3, help="share of clients that mean to")
    soak.add_argument("--times", type=_number, default=2.0, help="the capacity")
    soak.add_argument("--minutes", type=_number, default=5.0, help="of too much work")
    soak.add_argument(
        "--believed", type=_number, default=1.0, help="of the true costs, as if measured at start"
    )
    soak.add_argument("--kills", type=_count, default=3, help="of the model and of Triton")

    engine = command("engine", "serving.engine", "export,bench", "every stage in every runtime")
    engine.add_argument("--runtimes", nargs="+", metavar="RUNTIME", help="(all)")
    engine.add_argument("--sizes", nargs="+", metavar="WxH", help="(all exported)")
    engine.add_argument("--rounds", type=_count, default=3)
    engine.add_argument("--quick", action="store_true", help="two batches, little repetition")

    for made in (peers, overhead, soak, engine):
        made.add_argument("--repository", type=Path, default=Path("model_repository"))
        made.add_argument("--model", help="a model of the repository (the first)")
    for made in (peers, engine):
        made.add_argument("--student", type=Path, default=Path("models/emoji-student"))

    size = command("size", "serving.size", "export,bench", "a real model's size on this machine")
    size.add_argument(
        "student",
        nargs="?",
        default="StableDiffusion3Pipeline",
        help="a folder, or a class in gpu/shapes.toml for random weights (%(default)s)",
    )
    size.add_argument("--sizes", nargs="+", metavar="WxH", default=["256x256", "512x512"])
    size.add_argument("--slice", action="store_true", help="few layers, of their real shape")
    size.add_argument("--precision", help="of the export (the architecture's two bytes)")
    size.add_argument("--folder", type=Path, help="for the files, which may be 20 GB")

    distill = command("distill", "training.report", "export,bench", "the cost of an update")
    distill.add_argument("--recipe", type=Path, default=Path("distill/recipes/emoji.toml"))
    distill.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a recipe key"
    )
    distill.add_argument("--updates", type=_count, default=500, help="counted, of each form")
    distill.add_argument("--pairs", type=_count, default=30, help="timed, of each form")
    distill.add_argument(
        "--ablation", action="store_true", help="train and judge the method's parts instead"
    )
    group = distill.add_argument_group("with --ablation")
    group.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    group.add_argument("--only", nargs="+", metavar="VARIANT", help="(all)")
    group.add_argument("--pictures", type=_count, default=200, help="at each number of steps")

    gpu = command("gpu", "gpu.bench", "export,bench", "a student or real shapes on a GPU")
    gpu.add_argument("student", help="a folder, or a pipeline's class in gpu/shapes.toml")
    gpu.add_argument("--only", nargs="+", metavar="PART", help="(all)")
    gpu.add_argument("--sizes", nargs="+", metavar="WxH", help="(those of the shapes)")
    gpu.add_argument("--batches", type=_count, nargs="+", default=[1, 2, 4, 8, 16])
    gpu.add_argument("--seconds", type=_number, default=1.0, help="of each point (%(default)s)")
    gpu.add_argument("--minutes", type=_number, default=10.0, help="of all parts (%(default)s)")
    gpu.add_argument("--recipe", type=Path, help="of the update (that of the shapes)")
    gpu.add_argument("--update-batch", type=_count, default=16, help="samples of one process")
    gpu.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser


def _later(module: str, command: str, extra: str) -> Command:
    """A command whose module is imported when it runs, and needs what the extra installs."""

    def run(arguments: argparse.Namespace, console: Console) -> int:
        # Read while they are imported; what they warn of is not needed here.
        for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(library, "error")
        try:
            function: Command = getattr(importlib.import_module(module), command)
        except ModuleNotFoundError as error:
            raise BenchError(f"{error.name} is missing: pip install 'cdm-serve[{extra}]'") from None
        return function(arguments, console)

    return run


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
