"""The commands of ``python -m distill.demo.emoji``; their parameters are its options."""

import json
import textwrap
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusion3Pipeline

from distill.adapters import load_adapter
from distill.cli import whole_number
from distill.demo.emoji.compose import draw_composition
from distill.demo.emoji.judge import load_judge, save_judge, train_judge
from distill.demo.emoji.pool import latent_pool
from distill.demo.emoji.score import (
    QUESTIONS,
    held_out,
    judge_accuracy,
    print_scores,
    save_marked,
    score_pipeline,
)
from distill.demo.emoji.sprites import render_sheet
from distill.demo.emoji.teacher import PREVIEW_PROMPTS, sample_pictures, train_teacher
from distill.demo.emoji.text import new_tokenizer
from distill.demo.emoji.tiny import decoder_psnr, held_out_latents, train_tiny
from distill.demo.emoji.training import Plan
from distill.demo.emoji.vae import reconstruction_psnr, train_decoder, train_vae
from distill.demo.emoji.vocabulary import SUBJECTS
from distill.demo.figure import new_figure, save_figure
from distill.errors import DistillError
from distill.files import whole_file, whole_folder
from distill.parallel import Processes

_ALL = len(SUBJECTS)
Count = Annotated[int, whole_number(1)]
Subjects = Annotated[int, whole_number(2, _ALL)]

_FALLING = replace(Plan.optimiser, decay=0.5)
VAE_PLAN = Plan(3000, 16, 1e-3, replace(_FALLING, beta2=0.99, weight_decay=0.0), ema=0.995)
DECODER_PLAN = replace(VAE_PLAN, steps=6000)
TINY_PLAN = replace(VAE_PLAN, steps=5000, batch=32)
TEACHER_PLAN = Plan(6000, 64, 1e-3)
JUDGE_PLAN = Plan(3000, 96, 1.5e-3, replace(_FALLING, weight_decay=0.02), ema=0.995)
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PAIRS = 0.4  # share of captions with two subjects
PROMPT_SEED = 3  # no training draws its pictures from it
_COMPARED = 200  # pictures by which a tiny decoder is compared with the full one
_JUDGED = 4000  # pictures on which the judge's own accuracy is measured
_MODELS, _RUNS = Path("models"), Path("runs")


def sprites(font: Path = FONT) -> None:
    """Render the sheet of subjects from the font."""
    render_sheet(font)


def vae(plan: Plan = VAE_PLAN, folder: Path = _RUNS / "emoji-vae") -> None:
    """Train the autoencoder."""
    trained = train_vae(folder, plan)
    if Processes().main:
        with whole_folder(folder / "vae") as temporary:
            trained.save_pretrained(temporary)
        print(f"held-out reconstruction {reconstruction_psnr(trained):.2f} dB: {folder / 'vae'}")


def decoder(
    pipeline: Path,
    plan: Plan = DECODER_PLAN,
    folder: Path = _RUNS / "emoji-decoder",
) -> None:
    """Train a pipeline's VAE decoder on, alone; a better one takes its place."""
    place = pipeline / "vae"
    old = _load_vae(place)
    trained = train_decoder(folder, plan, old)
    if not Processes().main:
        return
    before, after = reconstruction_psnr(old), reconstruction_psnr(trained)
    print(f"held-out reconstruction {before:.2f} dB before, {after:.2f} dB after")
    if not after > before:  # also where it is not a number
        raise DistillError(f"{place} is better and stays; train longer, with more --steps")
    with whole_folder(place) as temporary:
        trained.to(torch.float16).save_pretrained(temporary)


def tiny(
    pipeline: Path,
    plan: Plan = TINY_PLAN,
    folder: Path = _RUNS / "emoji-tiny",
    out: Path = _MODELS / "emoji-tiny-decoder",
) -> None:
    """Distil a pipeline's VAE decoder into a small one, for previews and quick pictures."""
    full = _load_vae(pipeline / "vae")
    trained = train_tiny(folder, plan, full)
    if not Processes().main:
        return
    psnr = decoder_psnr(trained, full, held_out_latents(full))
    with whole_folder(out) as temporary:
        trained.to(torch.float16).save_pretrained(temporary)
    print(f"{psnr:.2f} dB from the full decoder on held-out latents: {out}")


def teacher(
    plan: Plan = TEACHER_PLAN,
    vae: Path = _RUNS / "emoji-vae/vae",
    folder: Path = _RUNS / "emoji-teacher",
    out: Path = _MODELS / "emoji-teacher",
    subjects: Subjects = _ALL,
    from_: Path | None = None,
    singles: Count = 24_000,
    pairs: Count = 16_000,
) -> None:
    """Train text encoders and transformer together, --from an older teacher's weights or new ones.

    --subjects are the first of the words; --singles and --pairs are pictures of one and of two.
    """
    trained_vae = _load_vae(vae).to(Processes().device)
    tokenizer, path = new_tokenizer(), folder / "pool.safetensors"
    pool = latent_pool(trained_vae, tokenizer, subjects, singles, pairs, path)
    trained = train_teacher(folder, plan, trained_vae, tokenizer, pool, PAIRS, older=from_)
    if Processes().main:
        with whole_folder(out) as temporary:
            whole = trained.pipeline(trained_vae, tokenizer).to(torch.float16)
            whole.save_pretrained(temporary)


def prompts(
    subjects: Subjects = _ALL,
    count: Count = 2000,
    out: Path = Path("distill/recipes/emoji-prompts.txt"),
) -> None:
    """Draw captions to distil with."""
    rng = np.random.default_rng(PROMPT_SEED)
    captions: dict[str, None] = {}  # in order, each once
    while len(captions) < count:
        captions[draw_composition(rng, subjects, PAIRS).caption] = None
    with whole_file(out) as temporary:
        temporary.write_text("".join(f"{caption}\n" for caption in captions))


def judge(
    plan: Plan = JUDGE_PLAN,
    folder: Path = _RUNS / "emoji-judge",
    out: Path = _MODELS / "emoji-judge",
) -> None:
    """Train the classifier that scores pictures."""
    trained = train_judge(folder, plan)
    facts = {
        "pictures": plan.steps * plan.batch,
        "parameters": sum(weight.numel() for weight in trained.parameters()),
        "torch": torch.__version__,
    }
    save_judge(trained, out, facts)
    # Measured on what was written: the float16 weights are those that judge.
    accuracy = judge_accuracy(load_judge(out), _JUDGED)
    measured = {"held_out_pictures": _JUDGED, "held_out_accuracy": accuracy}
    save_judge(trained, out, {**facts, **measured})
    for question in QUESTIONS:
        shares = (f"{name} {accuracy[name][question]:7.2%}" for name in accuracy)
        print(f"{question:10}", *shares)


def score(
    pipeline: Path,
    judge: Path = _MODELS / "emoji-judge",
    subjects: Subjects = _ALL,
    prompts: Count = 1000,
    steps: Count = 4,
    guidance: float = 1.0,
    seed: int = 0,
    out: Path | None = None,
    grid: Path | None = None,
    decoder: Path | None = None,
) -> None:
    """Judge a pipeline on captions kept from training.

    --out writes the scores as JSON, --grid pictures, the wrong ones in red frames. With --decoder
    a tiny one makes the pictures, and is compared with the pipeline's own.
    """
    network, compositions = load_judge(judge), held_out(prompts, subjects, seed)
    drawing = _load_pipeline(pipeline)
    full = drawing.vae
    compared: dict[str, Any] = {}
    if decoder:
        small = AutoencoderTiny.from_pretrained(decoder, torch_dtype=torch.float32).to(full.device)
        captions = [each.caption for each in compositions[:_COMPARED]]
        sampled = sample_pictures(drawing, captions, steps, guidance, seed, "latent")
        of = {"held_out": held_out_latents(full), "drawn": sampled.to(full.device)}
        psnr = {name: round(decoder_psnr(small, full, latents), 2) for name, latents in of.items()}
        compared = {"decoder": str(decoder), "decoder_psnr_db": psnr}
        drawing.register_modules(vae=small)
    scores, pictures = score_pipeline(drawing, network, compositions, steps, guidance, seed, full)
    scores |= compared
    print_scores(scores, f"{pipeline}, {steps} steps")
    for name, decibels in compared.get("decoder_psnr_db", {}).items():
        print(f"{decibels:.2f} dB from the full decoder on latents, {name}")
    if out:
        asked = {"steps": steps, "guidance": guidance, "subjects": subjects, "seed": seed}
        judged = {"judge": json.loads((judge / "judge.json").read_text())["held_out_accuracy"]}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = {"time": now, "torch": torch.__version__}
        result = {"pipeline": str(pipeline), **asked, **scores, **judged, **made}
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    if grid:
        save_marked(pictures, compositions, network, grid)


def gallery(
    teacher: Path = _MODELS / "emoji-teacher",
    student: Path = _MODELS / "emoji-student",
    seed: int = 0,
    out: Path = Path("docs/gallery.png"),
) -> None:
    """Draw teacher and student side by side, the same captions and seeds."""
    rows = [("teacher, 28 steps,\nguidance 3.5", _load_pipeline(teacher), 28, 3.5)]
    whole = _load_pipeline(student)
    for steps in (4, 2, 1):
        rows.append((f"student, {steps} step{'s' * (steps > 1)},\nno guidance", whole, steps, 1.0))
    figure = new_figure(1.4 * len(PREVIEW_PROMPTS) + 1.5, 1.4 * len(rows) + 0.5)
    grid = figure.subplots(len(rows), len(PREVIEW_PROMPTS))
    for line, (label, drawing, steps, guidance) in zip(grid, rows, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        pictures = sample_pictures(drawing, PREVIEW_PROMPTS, steps, guidance, seed)
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture.permute(1, 2, 0).clamp(0, 1))
            axes.set(xticks=[], yticks=[])
    for axes, caption in zip(grid[-1], PREVIEW_PROMPTS, strict=True):
        axes.set_xlabel(textwrap.fill(caption, 20), fontsize=9)
    save_figure(figure, out)


def _load_vae(folder: Path) -> AutoencoderKL:
    if not (folder / "config.json").exists():
        raise DistillError(
            f"{folder} holds no autoencoder; train one with python -m distill.demo.emoji vae"
        )
    loaded = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    loaded.register_to_config(_name_or_path="emoji-vae")  # else the folder's name is published
    return loaded.requires_grad_(False)


def _load_pipeline(folder: Path) -> StableDiffusion3Pipeline:
    loaded = load_adapter(str(folder), max_sequence_length=0).pipeline.to(Processes().device)
    loaded.set_progress_bar_config(disable=True)
    return loaded


COMMANDS = (sprites, vae, decoder, tiny, teacher, prompts, judge, score, gallery)
