"""Score pictures: what the judge finds right in them, and how far they lie from drawn ones."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from distill.demo.emoji.compose import Composition, draw_composition
from distill.demo.emoji.composer import drawn
from distill.demo.emoji.judge import JudgeNetwork, answers
from distill.demo.emoji.softening import soften
from distill.demo.emoji.teacher import sample_pictures
from distill.demo.emoji.vocabulary import POSITIONS, SIZES, SUBJECTS
from distill.files import save_grid
from distill.frechet import Gaussian, frechet_distance

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

QUESTIONS = ("background", "subject", "position", "size", "pair", "relation")
_SINGLES = len(SIZES) * len(POSITIONS)
_BATCH = 64
_Z = 1.96  # 95 %
_SAMPLED = 50  # at a time
_FRAME = 2
_SHOWN = 96


@torch.no_grad()
def look(judge: JudgeNetwork, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the features and the log-probabilities of each question, in float32."""
    seen = [judge(batch.float().clamp(0, 1)) for batch in torch.split(pictures, _BATCH)]
    features = torch.cat([features for features, _ in seen])
    questions = zip(*(logits for _, logits in seen), strict=True)
    return features, [torch.cat(parts).log_softmax(dim=1) for parts in questions]


def right(found: list[Tensor], compositions: Sequence[Composition]) -> dict[str, Tensor]:
    """Return for each question whether each picture is right, ``(B,)``: 1, 0 or -1 (not asked).

    One subject where two were asked for, or the reverse, leaves nothing right but the background.
    A pair is right when both subjects are there, its relation when they stand along the right axis
    and in the order asked for, which is the likelier one of the two, whoever they are.
    """
    wanted = answers(compositions)
    background, arrangement, alone, first, second = found
    arranged = arrangement.argmax(dim=1)
    asked_single = wanted[:, 1] < _SINGLES
    single, double = arranged < _SINGLES, arranged >= _SINGLES
    places = len(POSITIONS)

    def log_probability(of: Tensor, subject: Tensor) -> Tensor:
        return of.gather(1, subject.clamp_min(0)[:, None])[:, 0]

    both = torch.stack([first.argmax(dim=1), second.argmax(dim=1)], dim=1)
    a, b = wanted[:, 3], wanted[:, 4]
    in_order = log_probability(first, a) + log_probability(second, b)
    swapped = log_probability(first, b) + log_probability(second, a)
    singles = {
        "subject": single & (alone.argmax(dim=1) == wanted[:, 2]),
        "position": single & (arranged % places == wanted[:, 1] % places),
        "size": single & (arranged // places == wanted[:, 1] // places),
    }
    pairs = {
        "pair": double & (both.sort(dim=1).values == wanted[:, 3:].sort(dim=1).values).all(dim=1),
        "relation": (arranged == wanted[:, 1]) & (in_order > swapped),
    }
    verdict = {"background": (background.argmax(dim=1) == wanted[:, 0]).long()}
    for name, value in singles.items():
        verdict[name] = value.long().where(asked_single, -1)
    for name, value in pairs.items():
        verdict[name] = value.long().where(~asked_single, -1)
    return verdict


def rate(verdict: Tensor) -> dict[str, Any]:
    """Count the pictures asked for and right, with Wilson's 95 % interval of the share."""
    of, hits = int((verdict >= 0).sum()), int((verdict == 1).sum())
    if of == 0:
        return {"right": 0, "of": 0, "rate": None, "low": None, "high": None}
    share = hits / of
    middle = (share + _Z**2 / (2 * of)) / (1 + _Z**2 / of)
    reach = _Z * math.sqrt(share * (1 - share) / of + (_Z / (2 * of)) ** 2) / (1 + _Z**2 / of)
    bounds = {"low": max(middle - reach, 0.0), "high": min(middle + reach, 1.0)}
    return {"right": hits, "of": of, "rate": share, **bounds}


def feature_gaussian(features: Tensor) -> Gaussian:
    """The Gaussian fitted to features ``(N, D)``, as the Fréchet distance needs it."""
    features = features.double()
    return Gaussian(features.mean(dim=0), features.T.cov())


def score_pictures(
    pictures: Tensor, compositions: Sequence[Composition], judge: JudgeNetwork, seed: int = 0
) -> dict[str, Any]:
    """Score pictures ``(B, 3, 64, 64)`` in [0, 1] against what each was to show.

    Returns ``{"pictures": B, "accuracy": {question: {right, of, rate, low, high}}, "frechet": x,
    "frechet_floor": y}``: the distance to drawn pictures of the same compositions, and that
    between two sets of those drawn with different seeds.
    """
    features, found = look(judge, pictures.cpu())
    verdict = right(found, compositions)
    reference, again = (
        feature_gaussian(look(judge, drawn(compositions, seed + i))[0]) for i in range(2)
    )
    return {
        "pictures": len(pictures),
        "accuracy": {name: rate(verdict[name]) for name in QUESTIONS},
        "frechet": frechet_distance(feature_gaussian(features), reference),
        "frechet_floor": frechet_distance(again, reference),
    }


def held_out(count: int, subjects: int, seed: int = 0) -> list[Composition]:
    """Draw ``count`` compositions of the first ``subjects`` words that no training ever saw."""
    rng = np.random.default_rng(seed)
    return [draw_composition(rng, subjects, 0.5, held_out=True) for _ in range(count)]


def judge_accuracy(judge: JudgeNetwork, count: int) -> dict[str, dict[str, float]]:
    """Return the judge's own accuracy on drawn held-out pictures, as drawn and softened."""
    compositions = held_out(count, len(SUBJECTS))
    pictures = drawn(compositions, 0)
    softened = soften(pictures, torch.Generator().manual_seed(0))
    accuracy = {}
    for name, seen in {"drawn": pictures, "softened": softened}.items():
        verdict = right(look(judge, seen)[1], compositions)
        accuracy[name] = {question: rate(verdict[question])["rate"] for question in QUESTIONS}
    return accuracy


def sample_all(
    pipeline: "StableDiffusion3Pipeline",
    compositions: Sequence[Composition],
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:
    """Sample the captions in batches, ``(B, 3, 64, 64)``; picture i has ``seed + i``."""
    pictures = []
    for first in track(range(0, len(compositions), _SAMPLED), "sampling", transient=True):
        captions = [each.caption for each in compositions[first : first + _SAMPLED]]
        pictures.append(sample_pictures(pipeline, captions, steps, guidance, seed + first))
    return torch.cat(pictures)


@torch.no_grad()
def restored(vae: "AutoencoderKL", pictures: Tensor) -> Tensor:
    """Encode and decode pictures in [0, 1]: the best that a generator behind this VAE can show."""
    batches = torch.split(2 * pictures.to(vae.device) - 1, _SAMPLED)
    decoded = torch.cat([vae(batch).sample for batch in batches])
    return (decoded / 2 + 0.5).clamp(0, 1).cpu()


def score_pipeline(
    pipeline: "StableDiffusion3Pipeline",
    judge: JudgeNetwork,
    compositions: Sequence[Composition],
    steps: int,
    guidance: float,
    seed: int = 0,
    vae: "AutoencoderKL | None" = None,
) -> tuple[dict[str, Any], Tensor]:
    """Return the scores and the pictures they are of.

    Beside what ``score_pictures`` gives: ``through_vae``, the accuracy on drawn pictures that only
    passed through the VAE, the pipeline's unless it is given, and the seconds of sampling.
    """
    started = time.perf_counter()
    pictures = sample_all(pipeline, compositions, steps, guidance, seed)
    seconds = time.perf_counter() - started
    _, found = look(judge, restored(vae or pipeline.vae, drawn(compositions, seed)))
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
