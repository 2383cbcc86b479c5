"""The decoder trained on alone: latents stay as they are, and with them what was taught on them."""

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from distill.demo.emoji.loop import Losses, Plan, train
from distill.demo.emoji.processes import training_device
from distill.demo.emoji.vae import edge_difference, picture_pool, pictures_at, save_restored

# The share of the posterior's noise that the decoder sees. None would let it lean on details in
# which a generated latent is never exact.
_NOISE = 0.25
# Weighs the mean PSNR itself: flat backgrounds, whose errors are small, count as much as sprites.
_LOG_WEIGHT = 0.05
_FIRST_DRAW = 5_000_000  # pictures that the autoencoder was not trained on


def decoder_losses(restored: Tensor, images: Tensor) -> Losses:
    """Compare ``(B, 3, H, W)`` in [-1, 1]: absolute, edges, squared, and its logarithm."""
    squared = (restored - images).square().mean(dim=(1, 2, 3))
    loss = (
        functional.l1_loss(restored, images)
        + 0.5 * edge_difference(restored, images)
        + 2 * squared.mean()
        + _LOG_WEIGHT * squared.log().mean()
    )
    return {"loss": loss, "mse": squared.mean()}


def train_decoder(run: Path, plan: Plan, vae: AutoencoderKL, seed: int = 0) -> AutoencoderKL:
    """Return ``vae`` (float32) with its decoder trained on; the encoder is as it was."""
    device = training_device()
    vae = copy.deepcopy(vae).requires_grad_(False).to(device, memory_format=torch.channels_last)
    decoder: nn.Module = vae.decoder.requires_grad_(True)
    pool = picture_pool(seed, device)

    def loss_at(draw: int, count: int) -> Losses:
        images, generator = pictures_at(pool, seed + _FIRST_DRAW + draw, count)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                posterior = vae.encode(images).latent_dist
                shape = posterior.mean.shape
                noise = torch.randn(shape, generator=generator, device=device)
                latents = posterior.mean + _NOISE * posterior.std * noise
            return decoder_losses(decoder(latents).float(), images)

    def with_decoder(trained: nn.Module) -> AutoencoderKL:
        whole = copy.deepcopy(vae)
        whole.decoder = trained
        return whole

    averaged = train(
        plan,
        decoder,
        loss_at,
        run,
        lambda trained, path: save_restored(with_decoder(trained), path),
    )
    return with_decoder(averaged).to(memory_format=torch.contiguous_format)
