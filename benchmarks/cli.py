"""``cdm-bench``: measure an image server, and a distillation."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.variants import VARIANTS
from distill.errors import DistillError

LOADS = ("alone", "busy", "mixed")
RUNTIMES = (
    "torch f32",
    "torch bf16",
    "openvino f32",
    "openvino bf16",
    "onnxruntime cpu",
    "onnxruntime cuda",
    "tensorrt",
)
SOAKS = ("leaving", "overload", "kills")


def main(argv: list[str] | None = None) -> int:
    """Return 0, or 2 when the user can mend what is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments, Console())
    except (BenchError, DistillError) as error:
        print(f"cdm-bench: error: {error}", file=sys.stderr)
        return 2
    return code


def _training(command: str) -> Callable[[argparse.Namespace, Console], int]:
    """A command that needs torch."""
    return _later("benchmarks.training", command, "distill")


def _later(module: str, command: str, extra: str) -> Callable[[argparse.Namespace, Console], int]:
    """A command whose module is imported when it runs, and needs what the extra installs."""

    def run(arguments: argparse.Namespace, console: Console) -> int:
        # Read while they are imported; what they warn of is not needed here.
        for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(library, "error")
        try:
            function = getattr(importlib.import_module(module), command)
        except ModuleNotFoundError as error:
            raise BenchError(f"{error.name} is missing: pip install 'cdm-serve[{extra}]'") from None
        code: int = function(arguments, console)
        return code

    return run


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, more than 0")
    return seconds


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 2")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdm-bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser(
        "load",
        help="latency against load, every picture checked",
        description="Without --clients and --rates: 1, 4 and 16 clients, then a search for the "
        "highest Poisson rate that holds the SLO. A key is read from OPENAI_API_KEY.",
    )
    load.add_argument("url", help="root of the server, such as http://127.0.0.1:8000")
    load.add_argument("--clients", type=_positive, nargs="+", metavar="N", help="closed loops")
    load.add_argument("--rates", type=_number, nargs="+", metavar="R", help="Poisson, a second")
    load.add_argument("--search", action="store_true", help="for the highest rate, after these")
    load.add_argument("--slo", type=_number, default=500.0, metavar="MS", help="(%(default)s)")
    load.add_argument("--seconds", type=_seconds, default=10.0, help="at each load (%(default)s)")
    load.add_argument("--stream", action="store_true", help="and time the first preview")
    load.add_argument("--client", choices=("aiperf", "thin"), default="aiperf")
    load.add_argument("--steps", type=_positive, help="num_inference_steps (server's default)")
    load.add_argument("--model", help="a name from /v1/models (server's default)")
    load.add_argument(
        "--out", type=Path, metavar="FILE.json", default=Path("benchmarks/results/load.json")
    )
    load.set_defaults(run=_later("benchmarks.load_report", "load", "bench"))

    overhead = commands.add_parser("overhead", help="the server against the engine without one")
    overhead.add_argument("--rounds", type=_positive, default=5)
    overhead.add_argument("--seconds", type=_seconds, default=2.0, help="of each run")
    overhead.add_argument("--only", nargs="+", choices=LOADS, default=LOADS, help="these loads")
    overhead.set_defaults(run=_later("benchmarks.serving_commands", "overhead", "bench"))
    soak = commands.add_parser("soak", help="clients that leave, too much work, kills")
    soak.add_argument("--only", nargs="+", choices=SOAKS, default=SOAKS, help="these parts")
    soak.add_argument("--requests", type=_several, default=20_000, help="of the first part")
    soak.add_argument("--leaving", type=float, default=0.3, help="share of clients that mean to")
    soak.add_argument("--times", type=float, default=2.0, help="the capacity")
    soak.add_argument("--minutes", type=float, default=5.0, help="of too much work")
    soak.add_argument("--kills", type=_positive, default=3, help="of the model and of Triton")
    soak.set_defaults(run=_later("benchmarks.soak", "soak", "bench"))

    engine = commands.add_parser("engine", help="every stage in every runtime, and the floors")
    engine.add_argument("--student", type=Path, default=Path("models/emoji-student"))
    engine.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    engine.add_argument("--sizes", nargs="+", default=[], metavar="WxH", help="(all exported)")
    engine.add_argument("--rounds", type=_positive, default=3)
    engine.add_argument("--quick", action="store_true", help="two batches, little repetition")
    engine.set_defaults(run=_later("benchmarks.serving_commands", "engine", "export,bench"))
    for command in (overhead, soak, engine):
        command.add_argument("--repository", type=Path, default=Path("model_repository"))
        command.add_argument("--model", help="a model of the repository (the first)")
        command.add_argument("--out", type=Path, metavar="FILE.json")

    peers = commands.add_parser("peers", help="against diffusers behind other servers")
    peers.add_argument("--student", type=Path, default=Path("models/emoji-student"))
    peers.add_argument("--repository", type=Path, default=Path("model_repository"))
    peers.add_argument(
        "--int8", type=Path, metavar="DIR", help="repository with the student in int8, to run too"
    )
    peers.add_argument("--rounds", type=_several, default=5)
    peers.add_argument("--quick", action="store_true", help="two short rounds, no sweep")
    peers.add_argument(
        "--out", type=Path, metavar="FILE.json", default=Path("benchmarks/results/peers.json")
    )
    peers.set_defaults(run=_later("benchmarks.peer_report", "peers", "peers"))

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
    ablation.add_argument("--subjects", type=_several, default=64, help="that the teacher knows")
    ablation.add_argument("--guidance", type=float, default=3.5, help="of the teacher's pictures")
    ablation.set_defaults(run=_training("ablation"))
    for command in (distill, ablation):
        command.add_argument("--recipe", type=Path, default=Path("distill/recipes/emoji.toml"))
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a recipe key"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
