"""What the teacher trains on: captions as token ids, and the latents of their pictures."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor
from transformers import CLIPTokenizer

from distill.demo.emoji.compose import Composition, draw_composition
from distill.demo.emoji.composer import PicturePool
from distill.demo.emoji.text import token_ids
from distill.errors import DistillError
from distill.files import read_tensors, write_tensors
from distill.parallel import Processes

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
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Return the normalised latents ``(B, 8, 16, 16)`` of pictures in [0, 1], in float32."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        mean = vae.encode(2 * pictures - 1).latent_dist.mean.float()
    normalised: Tensor = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    return normalised


def draw_pool(subjects: int, singles: int, pairs: int) -> list[Composition]:
    """Draw compositions of one subject, then of two."""
    rng = np.random.default_rng(0)
    shares = [0.0] * singles + [1.0] * pairs
    return [draw_composition(rng, subjects, share) for share in shares]


def latent_pool(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    subjects: int,
    singles: int,
    pairs: int,
    path: Path,
) -> LatentPool:
    """Draw and encode the pool, or read it from ``path`` when that holds this very pool."""
    processes = Processes()
    made_of = f"{subjects} subjects, {singles} + {pairs} pictures, VAE {weights_sha256(vae)}"
    if processes.main and read_tensors(path, made_of) is None:
        compositions = draw_pool(subjects, singles, pairs)
        pictures = PicturePool(compositions, vae.device)
        generator = torch.Generator(vae.device).manual_seed(0)
        blocks = torch.split(torch.arange(len(pictures), device=vae.device), _BATCH)
        latents = [
            encode(vae, pictures.at(rows, generator)).half()
            for rows in track(blocks, "encoding pictures")
        ]
        ids = token_ids(tokenizer, [composition.caption for composition in compositions])
        tensors = {"latents": torch.cat(latents).contiguous(), "ids": ids}
        write_tensors(path, tensors, made_of)
    processes.wait()
    kept = read_tensors(path, made_of)
    if kept is None:
        raise DistillError(f"{path} cannot be read by every process; use a folder they share")
    return LatentPool(kept["latents"].to(vae.device), kept["ids"].to(vae.device), singles)


def weights_sha256(vae: AutoencoderKL) -> str:
    """Hex digest of an autoencoder's weights."""
    digest = hashlib.sha256()
    for weight in vae.state_dict().values():
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
