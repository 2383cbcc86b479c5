"""``cdm-distill``: a teacher and a recipe in, a few-step student out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from distill.errors import DistillError
from distill.recipe import read_recipe


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code is 2 when the user can mend what is wrong, 130 when stopped."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        overrides = list(options.set)
        if options.updates is not None:
            overrides.append(f"updates={options.updates}")
        recipe = read_recipe(options.recipe, overrides)
        # Read while they are imported; what they warn of (no torchvision) is not needed here.
        for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(library, "error")
        # Seconds of imports that --help and a mistake in the recipe need not wait for.
        if options.dry_run:
            from distill.dry_run import dry_run

            dry_run(recipe, options.processes, Console())
            return 0
        from distill.distillation import distil

        folder = options.run or Path("runs") / options.recipe.stem
        return distil(recipe, folder, options.resume, console)
    except DistillError as error:
        console.print(f"cdm-distill: error: {error}", style="red", soft_wrap=True, markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("stopped", style="red")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdm-distill", description=__doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument(
        "--run",
        "--folder",  # torchrun takes --run for one of its own
        type=Path,
        metavar="DIR",
        help="checkpoints, log, previews (runs/<recipe>); --folder under torchrun",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint, if any"
    )
    parser.add_argument("--updates", type=int, metavar="N", help="student updates of the whole run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a recipe key, such as loss.alpha=3",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run is and costs, and do nothing"
    )
    parser.add_argument(
        "--processes",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="for --dry-run: GPUs, all nodes",
    )
    return parser


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type that says what it expects."""
    expected = f"a whole number from {least}" + (f" to {most}" if most else "")

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return int(text)

    return parse
