"""The autoencoder: 64 x 64 pixels to 16 x 16 latents of 8 channels and back.

Its decoder can be trained on alone: latents stay as they are, and with them what was taught on
them.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from distill.demo.emoji.compose import Composition, draw_composition
from distill.demo.emoji.composer import PicturePool, drawn
from distill.demo.emoji.training import Losses, Plan, train
from distill.demo.emoji.vocabulary import SUBJECTS
from distill.parallel import Processes

PAIRS = 0.6
KL_WEIGHT = 3e-5
_POOL = 20_000
_HELD_OUT, _HELD_OUT_SEED = 256, 10**6
_STATISTICS_BATCHES = 4
# The share of the posterior's noise that the decoder sees when it is trained alone. None would let
# it lean on details in which a generated latent is never exact.
_NOISE = 0.25
# Weighs the mean PSNR itself: flat backgrounds, whose errors are small, count as much as sprites.
_LOG_WEIGHT = 0.05
_FIRST_DRAW = 5_000_000  # pictures that the autoencoder was not trained on


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


def compositions(seed: int, count: int, held_out: bool = False) -> list[Composition]:
    """Draw what pictures are to show, of the whole vocabulary."""
    rng = np.random.default_rng(seed)
    return [draw_composition(rng, len(SUBJECTS), PAIRS, held_out) for _ in range(count)]


def _pictures(seed: int, count: int, held_out: bool = False) -> Tensor:
    """``(count, 3, 64, 64)`` in [-1, 1], of the whole vocabulary."""
    return 2 * drawn(compositions(seed, count, held_out), seed) - 1


def held_out_pictures() -> Tensor:
    """256 in [-1, 1], of combinations that no training saw."""
    return _pictures(_HELD_OUT_SEED, _HELD_OUT, held_out=True)


def _edge_difference(restored: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels' differences, across plus down."""
    error = restored - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def vae_losses(vae: nn.Module, images: Tensor, noise: Tensor) -> Losses:
    """Return the reconstruction loss (absolute, edges, squared) plus the weighted KL term."""
    posterior = vae.encode(images).latent_dist  # type: ignore[operator]
    restored = vae.decode(posterior.mean + posterior.std * noise).sample.float()  # type: ignore[operator]
    absolute = functional.l1_loss(restored, images)
    squared = functional.mse_loss(restored, images)
    edges = _edge_difference(restored, images)
    divergence = posterior.kl().mean()
    loss = absolute + 0.5 * edges + 2 * squared + KL_WEIGHT * divergence
    return {"loss": loss, "mse": squared, "kl": divergence}


def decoder_losses(restored: Tensor, images: Tensor) -> Losses:
    """Compare ``(B, 3, H, W)`` in [-1, 1]: absolute, edges, squared, and its logarithm."""
    squared = (restored - images).square().mean(dim=(1, 2, 3))
    loss = (
        functional.l1_loss(restored, images)
        + 0.5 * _edge_difference(restored, images)
        + 2 * squared.mean()
        + _LOG_WEIGHT * squared.log().mean()
    )
    return {"loss": loss, "mse": squared.mean()}


@torch.no_grad()
def _restored(vae: nn.Module, images: Tensor) -> Tensor:
    restored: Tensor = vae(images).sample
    return restored


def _preview(vae: nn.Module, device: torch.device) -> Tensor:
    """Held-out pictures in [0, 1], each beside what the autoencoder makes of it."""
    images = held_out_pictures()[:18].to(device)
    return torch.stack([images, _restored(vae, images)], 1).flatten(0, 1) / 2 + 0.5


def reconstruction_psnr(vae: AutoencoderKL) -> float:
    """Return the mean PSNR in dB over held-out pictures."""
    images = held_out_pictures().to(vae.device)
    restored = torch.cat([_restored(vae, batch) for batch in torch.split(images, 32)])
    error = (restored.clamp(-1, 1) - images).div(2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def train_vae(run: Path, plan: Plan) -> AutoencoderKL:
    """Train the autoencoder and set its scaling and shift so that latents have unit variance."""
    torch.manual_seed(0)
    device = Processes().device
    vae = new_vae().to(device, memory_format=torch.channels_last)
    pool = PicturePool(compositions(0, _POOL), device)

    def loss_at(draw: int, count: int) -> Losses:
        images, generator = _batch(pool, draw, count)
        noise = torch.randn((count, 8, 16, 16), generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            return vae_losses(vae, images, noise)

    train(plan, vae, loss_at, run, lambda: _preview(vae, device))
    with torch.no_grad():
        batches = [_pictures(_HELD_OUT_SEED + 1 + i, 64) for i in range(_STATISTICS_BATCHES)]
        means = [vae.encode(batch.to(device)).latent_dist.mean for batch in batches]
        latents = torch.cat(means)
    vae.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4),
        shift_factor=round(latents.mean().item(), 4),
    )
    return vae.to(memory_format=torch.contiguous_format)


def train_decoder(run: Path, plan: Plan, vae: AutoencoderKL) -> AutoencoderKL:
    """Return ``vae`` (float32) with its decoder trained on; the encoder is as it was."""
    device = Processes().device
    vae = copy.deepcopy(vae).requires_grad_(False).to(device, memory_format=torch.channels_last)
    decoder: nn.Module = vae.decoder.requires_grad_(True)
    pool = PicturePool(compositions(0, _POOL), device)

    def loss_at(draw: int, count: int) -> Losses:
        images, generator = _batch(pool, _FIRST_DRAW + draw, count)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                posterior = vae.encode(images).latent_dist
                shape = posterior.mean.shape
                noise = torch.randn(shape, generator=generator, device=device)
                latents = posterior.mean + _NOISE * posterior.std * noise
            return decoder_losses(decoder(latents).float(), images)

    train(plan, decoder, loss_at, run, lambda: _preview(vae, device))
    return vae.to(memory_format=torch.contiguous_format)


def _batch(pool: PicturePool, seed: int, count: int) -> tuple[Tensor, torch.Generator]:
    """``count`` pictures in [-1, 1]; the generator goes on to draw their noise."""
    generator = torch.Generator(pool.device).manual_seed(seed)
    rows = torch.randint(len(pool), (count,), generator=generator, device=pool.device)
    return 2 * pool.at(rows, generator) - 1, generator
