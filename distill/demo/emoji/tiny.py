"""A small decoder for the autoencoder's latents, taught by the autoencoder's own.

It is an ``AutoencoderTiny`` as TAESD is: convolutions of one width without norms, for latents as
the transformer has them, unscaled. Only its decoder is trained, and its encoder is all zeros.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from rich.progress import track
from torch import Tensor

from distill.demo.emoji.composer import PicturePool
from distill.demo.emoji.pool import encode, weights_sha256
from distill.demo.emoji.training import Losses, Plan, train
from distill.demo.emoji.vae import compositions, decoder_losses, held_out_pictures
from distill.files import read_tensors, write_tensors
from distill.parallel import Processes

_POOL = 16_384
_SEED = 7_000_000  # pictures that no other training saw
_BATCH = 64
# The most noise that is added to latents, of unit variance: what a transformer makes is never
# exactly what an encoder makes of a picture, and neither is what a preview foresees.
_NOISE = 0.3


def new_tiny() -> AutoencoderTiny:
    """The autoencoder with random weights in its decoder, 0.25 million of them."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(4, 3, 1),
        latent_channels=8,
    )
    for weight in tiny.encoder.parameters():
        torch.nn.init.zeros_(weight)
    return tiny


@torch.no_grad()
def full(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The pictures (B, 3, 64, 64) in [-1, 1] that the autoencoder makes of unscaled latents."""
    scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = [vae.decode(batch).sample.float() for batch in torch.split(scaled, _BATCH)]
    return torch.cat(decoded).clamp(-1, 1)


@torch.no_grad()
def quick(tiny: AutoencoderTiny, latents: Tensor) -> Tensor:
    """The same by the small decoder."""
    decoded = [tiny.decode(batch).sample for batch in torch.split(latents, _BATCH)]
    return torch.cat(decoded).clamp(-1, 1)


def decoder_psnr(tiny: AutoencoderTiny, vae: AutoencoderKL, latents: Tensor) -> float:
    """Mean PSNR in dB of pictures by the small decoder to those by the full one."""
    error = (quick(tiny, latents) - full(vae, latents)).div(2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def held_out_latents(vae: AutoencoderKL) -> Tensor:
    """Of pictures that no training saw, (256, 8, 16, 16)."""
    return encode(vae, held_out_pictures().to(vae.device) / 2 + 0.5)


def _pool(vae: AutoencoderKL, path: Path) -> dict[str, Tensor]:
    """``latents`` (N, 8, 16, 16) float16 and ``pictures`` (N, 3, 64, 64) uint8; read or made."""
    made_of = f"{_POOL} pictures, noise {_NOISE}, VAE {weights_sha256(vae)}"
    processes = Processes()
    if processes.main and read_tensors(path, made_of) is None:
        composed = PicturePool(compositions(_SEED, _POOL), vae.device)
        generator = torch.Generator(vae.device).manual_seed(_SEED)
        latents, decoded = [], []
        blocks = torch.split(torch.arange(_POOL, device=vae.device), _BATCH)
        for rows in track(blocks, "encoding and decoding pictures"):
            clean = encode(vae, composed.at(rows, generator))
            level = torch.rand((len(rows), 1, 1, 1), generator=generator, device=vae.device)
            noise = torch.randn(clean.shape, generator=generator, device=vae.device)
            latents.append((clean + _NOISE * level * noise).half())
            unit = full(vae, latents[-1].float()) / 2 + 0.5
            decoded.append((255 * unit).round().to(torch.uint8))
        tensors = {"latents": torch.cat(latents), "pictures": torch.cat(decoded)}
        write_tensors(path, {name: each.contiguous() for name, each in tensors.items()}, made_of)
    processes.wait()
    made = read_tensors(path, made_of)
    assert made is not None
    return made


def train_tiny(run: Path, plan: Plan, vae: AutoencoderKL) -> AutoencoderTiny:
    """Teach a new small decoder to make of latents what ``vae`` (float32) makes of them."""
    torch.manual_seed(0)
    device = Processes().device
    vae = vae.to(device)
    pool, shown = _pool(vae, run / "pool.safetensors"), held_out_latents(vae)
    tiny = new_tiny().to(device, memory_format=torch.channels_last)

    def loss_at(draw: int, count: int) -> Losses:
        rows = torch.randint(_POOL, (count,), generator=torch.Generator().manual_seed(draw))
        latents = pool["latents"][rows].to(device).float()
        target = pool["pictures"][rows].to(device).float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16):
            made = tiny.decode(latents.to(memory_format=torch.channels_last)).sample
        return decoder_losses(made.float(), target)

    def preview() -> Tensor:
        pair = full(vae, shown[:18]), quick(tiny, shown[:18])
        return torch.stack(pair, 1).flatten(0, 1) / 2 + 0.5

    train(plan, tiny.decoder, loss_at, run, preview)
    return tiny.to(memory_format=torch.contiguous_format)
