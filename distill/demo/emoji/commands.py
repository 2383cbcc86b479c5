"""What the commands of ``python -m distill.demo.emoji`` do; imported when one of them runs."""

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL

from distill.adapters import load_adapter
from distill.demo.emoji.compose import draw_composition
from distill.demo.emoji.decoder import train_decoder
from distill.demo.emoji.gallery import save_gallery
from distill.demo.emoji.judge import load_judge, save_judge, train_judge
from distill.demo.emoji.latents import LatentPool, LivePool, latent_pool, live_pool
from distill.demo.emoji.loop import Plan
from distill.demo.emoji.processes import join_processes, training_device
from distill.demo.emoji.score import print_scores, save_marked, score_pipeline
from distill.demo.emoji.sprites import render_sheet
from distill.demo.emoji.teacher import PREVIEW_PROMPTS, sample, train_teacher
from distill.demo.emoji.text import new_tokenizer
from distill.demo.emoji.vae import reconstruction_psnr, train_vae
from distill.demo.emoji.verdict import QUESTIONS, held_out, judge_accuracy
from distill.errors import DistillError
from distill.files import save_grid, whole_file, whole_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

PAIRS = 0.4  # share of captions with two subjects
PROMPT_SEED = 3  # no training draws its pictures from it
_JUDGED = 4000  # pictures on which the judge's own accuracy is measured


def _sprites(arguments: argparse.Namespace) -> None:
    render_sheet(arguments.font)


def _autoencoder_plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        constant=0.5,
        ema=0.995,
        minutes=arguments.minutes,
    )


def _vae(arguments: argparse.Namespace) -> None:
    vae = train_vae(arguments.folder, _autoencoder_plan(arguments))
    if join_processes()[0] > 0:
        return
    with whole_folder(arguments.folder / "vae") as temporary:
        vae.save_pretrained(temporary)
    print(f"held-out reconstruction {reconstruction_psnr(vae):.2f} dB: {arguments.folder / 'vae'}")


def _load_vae(folder: Path) -> AutoencoderKL:
    if not (folder / "config.json").exists():
        raise DistillError(
            f"{folder} holds no autoencoder; train one with python -m distill.demo.emoji vae"
        )
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    vae.register_to_config(_name_or_path="emoji-vae")  # else the folder's name is published
    return vae.requires_grad_(False)


def _decoder(arguments: argparse.Namespace) -> None:
    folder = arguments.pipeline / "vae"
    vae = _load_vae(folder)
    trained = train_decoder(arguments.folder, _autoencoder_plan(arguments), vae)
    if join_processes()[0] > 0:
        return
    before, after = reconstruction_psnr(vae), reconstruction_psnr(trained)
    print(f"held-out reconstruction {before:.2f} dB before, {after:.2f} dB after")
    if not after > before:  # also where it is not a number
        raise DistillError(f"{folder} is better and stays; train longer, with more --steps")
    with whole_folder(folder) as temporary:
        trained.to(torch.float16).save_pretrained(temporary)


def _teacher(arguments: argparse.Namespace) -> None:
    vae = _load_vae(arguments.vae).to(training_device())
    tokenizer = new_tokenizer()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sizes = arguments.subjects, arguments.singles, arguments.pairs
    pool: LatentPool | LivePool
    if vae.device.type == "cpu":
        pool = latent_pool(vae, tokenizer, *sizes, arguments.folder / "pool.safetensors")
    else:
        pool = live_pool(vae, tokenizer, *sizes)
    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        minutes=arguments.minutes,
    )
    teacher = train_teacher(
        arguments.folder, plan, vae, tokenizer, pool, pairs=PAIRS, older=arguments.older
    )
    if join_processes()[0] > 0:
        return
    with whole_folder(arguments.out) as temporary:
        teacher.pipeline(vae, tokenizer).to(torch.float16).save_pretrained(temporary)


def _prompts(arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(PROMPT_SEED)
    captions: dict[str, None] = {}  # in order, each once
    while len(captions) < arguments.count:
        captions[draw_composition(rng, arguments.subjects, PAIRS).caption] = None
    with whole_file(arguments.out) as temporary:
        temporary.write_text("".join(f"{caption}\n" for caption in captions))


def _judge(arguments: argparse.Namespace) -> None:
    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=1.5e-3,
        weight_decay=0.02,
        constant=0.5,
        ema=0.995,
        minutes=arguments.minutes,
    )
    judge = train_judge(arguments.folder, plan)
    facts = {
        "pictures": plan.steps * plan.batch,
        "parameters": sum(weight.numel() for weight in judge.parameters()),
        "torch": torch.__version__,
    }
    save_judge(judge, arguments.out, facts)
    # Measured on what was written: the float16 weights are those that judge.
    accuracy = judge_accuracy(load_judge(arguments.out), _JUDGED)
    measured = {"held_out_pictures": _JUDGED, "held_out_accuracy": accuracy}
    save_judge(judge, arguments.out, {**facts, **measured})
    for question in QUESTIONS:
        shares = (f"{name} {accuracy[name][question]:7.2%}" for name in accuracy)
        print(f"{question:10}", *shares)


def _pipeline(folder: Path) -> "StableDiffusion3Pipeline":
    pipeline = load_adapter(str(folder), max_sequence_length=0).pipeline.to(training_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _score(arguments: argparse.Namespace) -> None:
    judge, pipeline = load_judge(arguments.judge), _pipeline(arguments.pipeline)
    compositions = held_out(arguments.prompts, arguments.subjects, arguments.seed)
    asked = {name: getattr(arguments, name) for name in ("steps", "guidance", "subjects", "seed")}
    scores, pictures = score_pipeline(
        pipeline, judge, compositions, arguments.steps, arguments.guidance, arguments.seed
    )
    result = {
        "pipeline": str(arguments.pipeline),
        **asked,
        **scores,
        "judge": json.loads((arguments.judge / "judge.json").read_text())["held_out_accuracy"],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
    }
    print_scores(scores, f"{arguments.pipeline}, {arguments.steps} steps")
    if arguments.out:
        with whole_file(arguments.out) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.grid:
        save_marked(pictures, compositions, judge, arguments.grid)


def _sample(arguments: argparse.Namespace) -> None:
    prompts = arguments.prompt or PREVIEW_PROMPTS
    images = sample(
        _pipeline(arguments.pipeline), prompts, arguments.steps, arguments.guidance, arguments.seed
    )
    save_grid(images, arguments.out, columns=min(len(images), 8))


def _gallery(arguments: argparse.Namespace) -> None:
    teacher, student = _pipeline(arguments.teacher), _pipeline(arguments.student)
    seed = arguments.seed
    rows = [("teacher, 28 steps\nguidance 3.5", sample(teacher, PREVIEW_PROMPTS, seed=seed))]
    for steps in (4, 2, 1):
        pictures = sample(student, PREVIEW_PROMPTS, steps, guidance_scale=1.0, seed=seed)
        rows.append((f"student, {steps} step{'s' * (steps > 1)}\nno guidance", pictures))
    save_gallery(rows, PREVIEW_PROMPTS, arguments.out)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "sprites": _sprites,
    "vae": _vae,
    "decoder": _decoder,
    "teacher": _teacher,
    "prompts": _prompts,
    "judge": _judge,
    "score": _score,
    "sample": _sample,
    "gallery": _gallery,
}


def run(arguments: argparse.Namespace) -> None:
    """Run the command that ``arguments`` name."""
    if getattr(arguments, "threads", None):
        torch.set_num_threads(arguments.threads)
    COMMANDS[arguments.command](arguments)
