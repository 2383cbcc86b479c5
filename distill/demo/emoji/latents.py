"""What the teacher trains on: captions as token ids, and the latents of their pictures.

On a CPU a pool of pictures is encoded once and kept; a GPU composes and encodes every batch anew,
which costs it little and gives it as many pictures as it can use.
"""

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

from distill.demo.emoji.compose import Composition, draw_composition
from distill.demo.emoji.composer import PicturePool
from distill.demo.emoji.processes import join_processes, wait_for_all
from distill.demo.emoji.text import token_ids
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

    def at(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the latents of ``rows`` ``(B,)`` in float32; nothing is drawn."""
        return self.latents[rows].float()


@dataclass(frozen=True)
class LivePool:
    """The same, of pictures that are composed and encoded when they are asked for."""

    pictures: PicturePool
    vae: AutoencoderKL
    ids: Tensor
    singles: int

    def at(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Compose and encode the pictures of ``rows`` ``(B,)``."""
        return encode(self.vae, self.pictures.at(rows, generator))


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Return the normalised latents ``(B, 8, 16, 16)`` of pictures in [0, 1], in float32."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        mean = vae.encode(2 * pictures - 1).latent_dist.mean.float()
    normalised: Tensor = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    return normalised


def draw_pool(subjects: int, singles: int, pairs: int, seed: int = 0) -> list[Composition]:
    """Draw compositions of one subject, then of two."""
    rng = np.random.default_rng(seed)
    shares = [0.0] * singles + [1.0] * pairs
    return [draw_composition(rng, subjects, share) for share in shares]


def live_pool(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, subjects: int, singles: int, pairs: int
) -> LivePool:
    """Draw the captions of the pool; its pictures are drawn on the VAE's device."""
    drawn = draw_pool(subjects, singles, pairs)
    ids = token_ids(tokenizer, [composition.caption for composition in drawn])
    return LivePool(PicturePool(drawn, vae.device), vae, ids.to(vae.device), singles)


def latent_pool(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    subjects: int,
    singles: int,
    pairs: int,
    cache: Path,
) -> LatentPool:
    """Draw and encode the pool, or load it from ``cache`` when that holds this very pool."""
    rank, _ = join_processes()
    made_of = f"{subjects} subjects, {singles} + {pairs} pictures, VAE {_hash(vae)}"
    if rank == 0 and _made_of(cache) != made_of:
        live = live_pool(vae, tokenizer, subjects, singles, pairs)
        generator = torch.Generator().manual_seed(0)
        blocks = torch.split(torch.arange(singles + pairs), _BATCH)
        latents = [live.at(rows, generator).half() for rows in track(blocks, "encoding pictures")]
        with whole_file(cache) as temporary:
            tensors = {"latents": torch.cat(latents).contiguous(), "ids": live.ids}
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
