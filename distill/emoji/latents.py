"""A pool of pictures, encoded once: the teacher trains on latents and token ids alone."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from distill.emoji.compose import draw_composition, from_pixels, render
from distill.emoji.processes import join_processes, wait_for_all
from distill.emoji.text import token_ids
from distill.files import whole_file

_BATCH = 64


@dataclass(frozen=True)
class LatentPool:
    """Normalised latents and captions; pictures of one subject come first.

    latents: ``(N, 8, 16, 16)`` float16, of about unit variance. ids: ``(N, 24)`` int64.
    singles: how many of the N show one subject.
    """

    latents: Tensor
    ids: Tensor
    singles: int


@torch.no_grad()
def build_pool(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    subjects: int,
    singles: int,
    pairs: int,
    cache: Path,
    seed: int = 0,
) -> LatentPool:
    """Draw and encode the pool, or load it from ``cache`` when that holds this very pool."""
    rank, _ = join_processes()
    made_of = f"{subjects} subjects, {singles} + {pairs} pictures, seed {seed}, VAE {_hash(vae)}"
    if rank == 0 and _made_of(cache) != made_of:
        latents, ids = [], []
        config = vae.config
        for first in track(range(0, singles + pairs, _BATCH), "encoding pictures"):
            rng = np.random.default_rng((seed, first))
            rows = range(first, min(first + _BATCH, singles + pairs))
            drawn = [draw_composition(rng, subjects, float(row >= singles)) for row in rows]
            images = from_pixels(np.stack([render(composition, rng) for composition in drawn]))
            with torch.autocast("cpu", torch.bfloat16):
                encoded = vae.encode(images).latent_dist.mean.float()
            normalised = (encoded - config.shift_factor) * config.scaling_factor
            latents.append(normalised.half().contiguous())
            ids.append(token_ids(tokenizer, [composition.caption for composition in drawn]))
        with whole_file(cache) as temporary:
            tensors = {"latents": torch.cat(latents), "ids": torch.cat(ids)}
            save_file(tensors, temporary, metadata={"made_of": made_of})
    wait_for_all()
    pool = load_file(cache)
    return LatentPool(pool["latents"], pool["ids"], singles)


def _hash(vae: AutoencoderKL) -> str:
    digest = hashlib.sha256()
    for weight in vae.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _made_of(cache: Path) -> str | None:
    if not cache.exists():
        return None
    with safe_open(cache, framework="pt") as pool:
        found: str | None = (pool.metadata() or {}).get("made_of")
    return found
