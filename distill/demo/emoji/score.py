"""Score a pipeline on held-out captions: the judge's verdict on what it draws."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from distill.demo.emoji.compose import Composition
from distill.demo.emoji.composer import drawn
from distill.demo.emoji.judge import JudgeNetwork
from distill.demo.emoji.teacher import sample
from distill.demo.emoji.verdict import QUESTIONS, look, rate, right, score_pictures
from distill.files import save_grid

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

_BATCH = 50
_FRAME = 2
_SHOWN = 96


def sample_all(
    pipeline: "StableDiffusion3Pipeline",
    compositions: Sequence[Composition],
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:
    """Sample the captions in batches, ``(B, 3, 64, 64)``; picture i has ``seed + i``."""
    captions = [composition.caption for composition in compositions]
    return torch.cat(
        [
            sample(pipeline, captions[first : first + _BATCH], steps, guidance, seed + first)
            for first in track(range(0, len(captions), _BATCH), "sampling", transient=True)
        ]
    )


@torch.no_grad()
def restored(vae: "AutoencoderKL", pictures: Tensor) -> Tensor:
    """Encode and decode pictures in [0, 1]: the best that a generator behind this VAE can show."""
    batches = torch.split(2 * pictures.to(vae.device) - 1, _BATCH)
    decoded = torch.cat([vae(batch).sample for batch in batches])
    return (decoded / 2 + 0.5).clamp(0, 1).cpu()


def score_pipeline(
    pipeline: "StableDiffusion3Pipeline",
    judge: JudgeNetwork,
    compositions: Sequence[Composition],
    steps: int,
    guidance: float,
    seed: int = 0,
) -> tuple[dict[str, Any], Tensor]:
    """Return the scores and the pictures they are of.

    Beside what ``score_pictures`` gives: ``through_vae``, the accuracy on drawn pictures that only
    passed through the pipeline's VAE, and the seconds of sampling.
    """
    started = time.perf_counter()
    pictures = sample_all(pipeline, compositions, steps, guidance, seed)
    seconds = time.perf_counter() - started
    _, found = look(judge, restored(pipeline.vae, drawn(compositions, seed)))
    verdict = right(found, compositions)
    scores = {
        **score_pictures(pictures, compositions, judge, seed),
        "through_vae": {name: rate(verdict[name]) for name in QUESTIONS},
        "sampling_seconds": round(seconds, 1),
    }
    return scores, pictures


def save_marked(
    pictures: Tensor, compositions: Sequence[Composition], judge: JudgeNetwork, path: Path
) -> None:
    """Write the first pictures as a grid; a red frame stands around what the judge finds wrong."""
    shown, asked = pictures[:_SHOWN], compositions[:_SHOWN]
    verdict = right(look(judge, shown)[1], asked)
    wrong = torch.stack(list(verdict.values())).eq(0).any(dim=0)
    framed = functional.pad(shown, (_FRAME,) * 4, value=1.0)
    edge = functional.pad(torch.zeros_like(shown), (_FRAME,) * 4, value=1.0).bool()
    red = torch.tensor([0.86, 0.08, 0.12])[:, None, None]
    framed = torch.where(edge & wrong[:, None, None, None], red, framed)
    save_grid(framed, path, columns=12)


def print_scores(scores: dict[str, Any], title: str) -> None:
    """Print the scores as a table."""
    table = Table("", "right", "of", "95 % interval", "through the VAE", title=title)
    for name in QUESTIONS:
        found, best = scores["accuracy"][name], scores["through_vae"][name]
        if found["of"]:
            interval = f"{found['low']:.1%} - {found['high']:.1%}"
            share, most = f"{found['rate']:.1%}", f"{best['rate']:.1%}"
            table.add_row(name, share, str(found["of"]), interval, most)
    table.caption = (
        f"Fréchet distance to drawn pictures {scores['frechet']:.2f} "
        f"(drawn to drawn {scores['frechet_floor']:.2f})"
    )
    Console().print(table)
