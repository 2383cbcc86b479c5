"""Make the emoji teacher, and look at what it draws."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from distill.demo.emoji.vocabulary import SUBJECTS
from distill.errors import DistillError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def _whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type that says what it expects."""
    expected = f"a whole number from {least}" + (f" to {most}" if most else "")

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return int(text)

    return parse


def _positive(text: str) -> float:
    """An argparse type for a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distill.demo.emoji", description=__doc__)
    most = len(SUBJECTS)
    count, subjects = _whole_number(1), _whole_number(2, most)
    commands = parser.add_subparsers(dest="command", required=True)

    sprites = commands.add_parser("sprites", help="render the sheet of subjects from the font")
    sprites.add_argument("--font", type=Path, default=FONT)

    vae = commands.add_parser("vae", help="train the autoencoder")
    vae.add_argument("--folder", type=Path, default=Path("runs/emoji-vae"))
    vae.add_argument("--steps", type=count, default=3000)
    vae.add_argument("--batch", type=count, default=16)

    decoder = commands.add_parser("decoder", help="train a pipeline's VAE decoder on, alone")
    decoder.add_argument("pipeline", type=Path, help="its vae is replaced by the better one")
    decoder.add_argument("--folder", type=Path, default=Path("runs/emoji-decoder"))
    decoder.add_argument("--steps", type=count, default=6000)
    decoder.add_argument("--batch", type=count, default=16)

    teacher = commands.add_parser("teacher", help="train text encoders and transformer together")
    teacher.add_argument("--vae", type=Path, default=Path("runs/emoji-vae/vae"))
    teacher.add_argument("--folder", type=Path, default=Path("runs/emoji-teacher"))
    teacher.add_argument("--out", type=Path, default=Path("models/emoji-teacher"))
    teacher.add_argument("--subjects", type=subjects, default=most, help="the first of the words")
    teacher.add_argument(
        "--from", dest="older", type=Path, help="a teacher's folder whose weights to start from"
    )
    teacher.add_argument("--steps", type=count, default=6000)
    teacher.add_argument("--batch", type=count, default=64)
    teacher.add_argument("--singles", type=count, default=24_000, help="pictures of one subject")
    teacher.add_argument("--pairs", type=count, default=16_000, help="pictures of two subjects")

    prompts = commands.add_parser("prompts", help="draw captions to distil with")
    prompts.add_argument("--subjects", type=subjects, default=most, help="that the teacher knows")
    prompts.add_argument("--count", type=count, default=2000)
    prompts.add_argument("--out", type=Path, default=Path("distill/recipes/emoji-prompts.txt"))

    judge = commands.add_parser("judge", help="train the classifier that scores pictures")
    judge.add_argument("--folder", type=Path, default=Path("runs/emoji-judge"))
    judge.add_argument("--out", type=Path, default=Path("models/emoji-judge"))
    judge.add_argument("--steps", type=count, default=3000)
    judge.add_argument("--batch", type=count, default=96)

    score = commands.add_parser("score", help="judge a pipeline on captions kept from training")
    score.add_argument("pipeline", type=Path)
    score.add_argument("--judge", type=Path, default=Path("models/emoji-judge"))
    score.add_argument("--subjects", type=subjects, default=most, help="those it was trained on")
    score.add_argument("--prompts", type=count, default=1000, help="how many captions")
    score.add_argument("--steps", type=count, default=4)
    score.add_argument("--guidance", type=float, default=1.0)
    score.add_argument("--seed", type=int, default=0, help="of the captions and of the noise")
    score.add_argument("--out", type=Path, help="write the scores as JSON")
    score.add_argument("--grid", type=Path, help="write pictures, the wrong ones in red frames")

    sample = commands.add_parser("sample", help="write a grid of pictures")
    sample.add_argument("pipeline", type=Path)
    sample.add_argument("--prompt", action="append", help="repeat for more; default: a fixed set")
    sample.add_argument("--steps", type=count, default=28)
    sample.add_argument("--guidance", type=float, default=3.5)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", type=Path, default=Path("sample.png"))

    gallery = commands.add_parser("gallery", help="teacher and student side by side")
    gallery.add_argument("--teacher", type=Path, default=Path("models/emoji-teacher"))
    gallery.add_argument("--student", type=Path, default=Path("models/emoji-student"))
    gallery.add_argument("--seed", type=int, default=0)
    gallery.add_argument("--out", type=Path, default=Path("docs/gallery.png"))

    for command in (vae, decoder, teacher):
        command.add_argument("--rate", type=_positive, default=1e-3, help="the learning rate")
    for command in (vae, decoder, teacher, judge):
        command.add_argument(
            "--minutes", type=_positive, default=math.inf, help="stop there; the same call goes on"
        )
    for command in (vae, decoder, teacher, judge, score, sample, gallery):
        command.add_argument("--threads", type=count, help="CPU threads (default: all cores)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    from distill.demo.emoji.commands import (
        run,  # torch and diffusers, after the arguments are right
    )

    try:
        run(arguments)
    except DistillError as error:
        print(f"distill.demo.emoji: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
