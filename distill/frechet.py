"""How far two sets of latents are apart, without any network to judge them.

Gaussians are fitted to the sets' 2 x 2 latent patches (every position, 4C numbers each), and the
Fréchet distance between them is taken (Dowson and Landau, 1982; the distance of FID), in units of
the reference's own standard deviations. A patch's mean and covariance hold the channels' levels
(darkening), their spread and correlation (saturation, contrast, collapse) and the differences of
neighbours (blur, noise, the grid of a transformer's patches).

Without these units the few directions of great variance, the levels, would decide alone:
neighbours differ much less than pictures do, so blur would hardly count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Where the reference hardly varies at all, its unit is this part of its greatest variance.
_LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D), float64 on the CPU."""

    mean: Tensor
    covariance: Tensor


def patch_gaussian(latents: Tensor) -> Gaussian:
    """The Gaussian of all 2 x 2 patches of latents (B, C, h, w), in 4C dimensions."""
    h, w = latents.shape[-2] - 1, latents.shape[-1] - 1
    corners = [latents[..., i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]
    patches = torch.cat(corners, 1).cpu().double().movedim(1, -1).flatten(0, -2)
    return Gaussian(patches.mean(0), torch.cov(patches.T, correction=0))


def patch_distance(latents: Tensor, reference: Tensor) -> float:
    """0 where the patches' Gaussians agree; larger is worse.

    It is a mean over the 4C directions: 1 is what a flat patch of the right level would have, or
    one that is off by one standard deviation everywhere.

    Args:
        latents: (B, C, h, w).
        reference: (B', C, h', w'), whose standard deviations are the unit.
    """
    ours, theirs = patch_gaussian(latents), patch_gaussian(reference)
    variances, directions = torch.linalg.eigh(theirs.covariance)
    least = _LEAST_VARIANCE * variances[-1]
    units = directions / variances.clamp(min=least).sqrt()  # a column for each direction
    distance = frechet_distance(_in_units(ours, units), _in_units(theirs, units))
    return distance / len(variances)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)``, not below 0."""
    root = _square_root(a.covariance)
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _in_units(gaussian: Gaussian, units: Tensor) -> Gaussian:
    return Gaussian(gaussian.mean @ units, units.T @ gaussian.covariance @ units)


def _square_root(covariance: Tensor) -> Tensor:
    """Of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root
