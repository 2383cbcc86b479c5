"""The autoencoder: 64 x 64 pixels to 16 x 16 latents of 8 channels and back."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from distill.demo.emoji.compose import Composition, draw_composition
from distill.demo.emoji.composer import PicturePool, drawn
from distill.demo.emoji.loop import Losses, Plan, train
from distill.demo.emoji.processes import training_device
from distill.demo.emoji.vocabulary import SUBJECTS
from distill.files import save_grid

PAIRS = 0.6
KL_WEIGHT = 3e-5
_POOL = 20_000
_HELD_OUT_SEED = 10**6
_STATISTICS_BATCHES = 4


def new_vae() -> AutoencoderKL:
    """Build the autoencoder with random weights, 1.6 million of them."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=16,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _draw(seed: int, count: int, held_out: bool = False) -> list[Composition]:
    rng = np.random.default_rng(seed)
    return [draw_composition(rng, len(SUBJECTS), PAIRS, held_out) for _ in range(count)]


def pictures(seed: int, count: int, held_out: bool = False) -> Tensor:
    """Draw ``count`` pictures of the whole vocabulary, ``(count, 3, 64, 64)`` in [-1, 1]."""
    return 2 * drawn(_draw(seed, count, held_out), seed) - 1


def edge_difference(restored: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels' differences, across plus down."""
    error = restored - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def vae_losses(vae: nn.Module, images: Tensor, noise: Tensor) -> Losses:
    """Return the reconstruction loss (absolute, edges, squared) plus the weighted KL term."""
    posterior = vae.encode(images).latent_dist  # type: ignore[operator]
    restored = vae.decode(posterior.mean + posterior.std * noise).sample.float()  # type: ignore[operator]
    absolute = functional.l1_loss(restored, images)
    squared = functional.mse_loss(restored, images)
    edges = edge_difference(restored, images)
    divergence = posterior.kl().mean()
    loss = absolute + 0.5 * edges + 2 * squared + KL_WEIGHT * divergence
    return {"loss": loss, "mse": squared, "kl": divergence}


def picture_pool(seed: int, device: torch.device) -> PicturePool:
    """Return the compositions that training draws its pictures from."""
    return PicturePool(_draw(seed, _POOL), device)


def pictures_at(pool: PicturePool, seed: int, count: int) -> tuple[Tensor, torch.Generator]:
    """Compose ``count`` pictures in [-1, 1]; the generator goes on to draw their noise."""
    device = pool.device
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randint(len(pool), (count,), generator=generator, device=device)
    return 2 * pool.at(rows, generator) - 1, generator


def save_restored(vae: nn.Module, path: Path) -> None:
    """Write held-out pictures above what the autoencoder makes of them."""
    device = next(vae.parameters()).device
    images = pictures(_HELD_OUT_SEED, 12, held_out=True).to(device)
    both = torch.cat([images, _restored(vae, images)])
    save_grid(both / 2 + 0.5, path, columns=12)


@torch.no_grad()
def _restored(vae: nn.Module, images: Tensor) -> Tensor:
    restored: Tensor = vae(images).sample
    return restored


def reconstruction_psnr(vae: AutoencoderKL, count: int = 256) -> float:
    """Return the mean PSNR in dB over ``count`` held-out pictures."""
    images = pictures(_HELD_OUT_SEED, count, held_out=True).to(vae.device)
    restored = torch.cat([_restored(vae, batch) for batch in torch.split(images, 32)])
    error = (restored.clamp(-1, 1) - images).div(2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def train_vae(run: Path, plan: Plan, seed: int = 0) -> AutoencoderKL:
    """Train the autoencoder and set its scaling and shift so that latents have unit variance."""
    torch.manual_seed(seed)
    device = training_device()
    vae = new_vae().to(device, memory_format=torch.channels_last)
    pool = picture_pool(seed, device)

    def loss_at(draw: int, count: int) -> Losses:
        images, generator = pictures_at(pool, seed + draw, count)
        noise = torch.randn((count, 8, 16, 16), generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            return vae_losses(vae, images, noise)

    averaged: AutoencoderKL = train(plan, vae, loss_at, run, save_restored)
    with torch.no_grad():
        batches = [pictures(_HELD_OUT_SEED + 1 + i, 64) for i in range(_STATISTICS_BATCHES)]
        means = [averaged.encode(batch.to(device)).latent_dist.mean for batch in batches]
        latents = torch.cat(means)
    averaged.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4),
        shift_factor=round(latents.mean().item(), 4),
    )
    return averaged.to(memory_format=torch.contiguous_format)
