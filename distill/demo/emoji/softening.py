"""Spoil pictures the way autoencoders and generators do, so that soft but right pictures count."""

import torch
from torch import Tensor
from torch.nn import functional

_MOVE = 0.06  # of half the canvas: about two pixels
_BLUR = 1.3  # standard deviation in pixels


def soften(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``(B, 3, H, H)`` in [0, 1] bent, blurred, tinted and noisy, each in its own measure.

    Each kind of damage spares one picture in four. No network is involved: what a judge learns
    from these pictures it does not learn from the models it is to judge.
    """
    count, _, side, _ = pictures.shape
    device = pictures.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def strength(most: float) -> Tensor:
        return most * (uniform(count, 1, 1, 1) * 4 / 3 - 1 / 3).clamp_min(0)

    bend = functional.interpolate(
        normal(count, 2, 4, 4), size=(side, side), mode="bilinear", align_corners=True
    )
    move = _MOVE * (2 * uniform(count, 2, 1, 1) - 1)
    steps = torch.linspace(-1, 1, side, device=device)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy")) + strength(0.05) * bend + move
    soft = functional.grid_sample(
        pictures, grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=True
    )
    soft = _blurred(soft, strength(_BLUR))
    contrast = 1 + 0.08 * (2 * uniform(count, 1, 1, 1) - 1)
    soft = (soft - 0.5) * contrast + 0.5 + 0.03 * (2 * uniform(count, 3, 1, 1) - 1)
    blotches = functional.interpolate(normal(count, 3, side // 4, side // 4), size=(side, side))
    soft = soft + strength(0.05) * blotches + strength(0.05) * normal(count, 3, side, side)
    return _compressed(soft, strength(0.3)).clamp(0, 1)


def _blurred(pictures: Tensor, deviation: Tensor) -> Tensor:
    """Blur each picture by its own Gaussian, ``deviation`` ``(B, 1, 1, 1)`` in pixels."""
    place = torch.arange(pictures.shape[-1], device=pictures.device)
    distance = (place[:, None] - place) / deviation.clamp_min(0.05)
    blur = (-0.5 * distance.square()).softmax(dim=-1)
    return blur @ pictures @ blur.mT


def _compressed(pictures: Tensor, step: Tensor) -> Tensor:
    """Round the cosine coefficients of 8 x 8 blocks, the higher the coarser, as JPEG does."""
    place = torch.arange(8, device=pictures.device)
    cosines = torch.cos(torch.pi / 8 * (place + 0.5) * place[:, None]) / 2
    cosines[0] /= 2**0.5
    basis = torch.kron(cosines, cosines)
    count, channels, side, _ = pictures.shape
    blocks = pictures.reshape(count, channels, side // 8, 8, side // 8, 8).transpose(3, 4)
    coefficients = blocks.reshape(count, -1, 64) @ basis.T
    coarseness = (1 + place[:, None] + place).reshape(64) / 8
    width = (step[:, 0] * coarseness).clamp_min(1e-4)
    restored = ((coefficients / width).round() * width @ basis).reshape(blocks.shape)
    return restored.transpose(3, 4).reshape(pictures.shape)
