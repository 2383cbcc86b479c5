"""Make the emoji teacher, and look at what it draws."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distill.emoji.vocabulary import SUBJECTS
from distill.errors import DistillError
from distill.files import whole_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def _whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type that says what it expects."""
    expected = f"a whole number from {least}" + (f" to {most}" if most else "")

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distill.emoji", description=__doc__)
    count = _whole_number(1)
    commands = parser.add_subparsers(dest="command", required=True)

    sprites = commands.add_parser("sprites", help="render the sheet of subjects from the font")
    sprites.add_argument("--font", type=Path, default=FONT)

    vae = commands.add_parser("vae", help="train the autoencoder")
    vae.add_argument("--folder", type=Path, default=Path("runs/emoji-vae"))
    vae.add_argument("--steps", type=count, default=3000)
    vae.add_argument("--batch", type=count, default=16)

    teacher = commands.add_parser("teacher", help="train text encoders and transformer together")
    teacher.add_argument("--vae", type=Path, default=Path("runs/emoji-vae/vae"))
    teacher.add_argument("--folder", type=Path, default=Path("runs/emoji-teacher"))
    teacher.add_argument("--out", type=Path, default=Path("models/emoji-teacher"))
    teacher.add_argument(
        "--subjects",
        type=_whole_number(2, len(SUBJECTS)),
        default=48,
        help="how many of the vocabulary",
    )
    teacher.add_argument("--steps", type=count, default=6000)
    teacher.add_argument("--batch", type=count, default=64)
    teacher.add_argument("--singles", type=count, default=24_000, help="pictures of one subject")
    teacher.add_argument("--pairs", type=count, default=16_000, help="pictures of two subjects")

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

    for command in (vae, teacher, sample, gallery):
        command.add_argument("--threads", type=count, help="CPU threads (default: all cores)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except DistillError as error:
        print(f"distill.emoji: {error}", file=sys.stderr)
        return 2
    return 0


def _sprites(arguments: argparse.Namespace) -> None:
    from distill.emoji.sprites import render_sheet

    render_sheet(arguments.font)


def _use_threads(arguments: argparse.Namespace) -> None:
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)


def _vae(arguments: argparse.Namespace) -> None:
    _use_threads(arguments)
    from distill.emoji.loop import Plan
    from distill.emoji.processes import join_processes
    from distill.emoji.vae import reconstruction_psnr, train_vae

    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=1e-3,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        constant=0.5,
        ema=0.995,
    )
    vae = train_vae(arguments.folder, plan)
    if join_processes()[0] > 0:
        return
    with whole_folder(arguments.folder / "vae") as temporary:
        vae.save_pretrained(temporary)
    print(f"held-out reconstruction {reconstruction_psnr(vae):.2f} dB: {arguments.folder / 'vae'}")


def _teacher(arguments: argparse.Namespace) -> None:
    _use_threads(arguments)
    import torch
    from diffusers import AutoencoderKL

    from distill.emoji.latents import build_pool
    from distill.emoji.loop import Plan
    from distill.emoji.processes import join_processes
    from distill.emoji.teacher import train_teacher
    from distill.emoji.text import new_tokenizer

    if not (arguments.vae / "config.json").exists():
        raise DistillError(
            f"{arguments.vae} holds no autoencoder; train one with python -m distill.emoji vae"
        )
    vae = AutoencoderKL.from_pretrained(arguments.vae)
    vae.register_to_config(_name_or_path="emoji-vae")  # else the folder's name is published
    tokenizer = new_tokenizer()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pool = build_pool(
        vae,
        tokenizer,
        arguments.subjects,
        arguments.singles,
        arguments.pairs,
        arguments.folder / "pool.safetensors",
    )
    plan = Plan(steps=arguments.steps, batch=arguments.batch, learning_rate=1e-3)
    teacher = train_teacher(arguments.folder, plan, vae, pool, pairs=0.4)
    if join_processes()[0] > 0:
        return
    with whole_folder(arguments.out) as temporary:
        teacher.pipeline(vae, tokenizer).to(torch.float16).save_pretrained(temporary)


def _pipeline(folder: Path) -> "StableDiffusion3Pipeline":
    from distill.adapters import load_adapter

    pipeline = load_adapter(str(folder), max_sequence_length=0).pipeline
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sample(arguments: argparse.Namespace) -> None:
    _use_threads(arguments)
    from distill.emoji.teacher import PREVIEW_PROMPTS, sample
    from distill.pictures import save_grid

    prompts = arguments.prompt or PREVIEW_PROMPTS
    images = sample(
        _pipeline(arguments.pipeline), prompts, arguments.steps, arguments.guidance, arguments.seed
    )
    save_grid(images, arguments.out, columns=min(len(images), 8))


def _gallery(arguments: argparse.Namespace) -> None:
    _use_threads(arguments)
    from distill.emoji.gallery import save_gallery
    from distill.emoji.teacher import PREVIEW_PROMPTS, sample

    teacher, student = _pipeline(arguments.teacher), _pipeline(arguments.student)
    seed = arguments.seed
    rows = [("teacher, 28 steps\nguidance 3.5", sample(teacher, PREVIEW_PROMPTS, seed=seed))]
    for steps in (4, 2, 1):
        pictures = sample(student, PREVIEW_PROMPTS, steps, guidance_scale=1.0, seed=seed)
        rows.append((f"student, {steps} step{'s' * (steps > 1)}\nno guidance", pictures))
    save_gallery(rows, PREVIEW_PROMPTS, arguments.out)


COMMANDS = {
    "sprites": _sprites,
    "vae": _vae,
    "teacher": _teacher,
    "sample": _sample,
    "gallery": _gallery,
}

if __name__ == "__main__":
    sys.exit(main())
