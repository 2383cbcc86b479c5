"""Flow matching in three lines: ``x_s = (1 - s) * x0 + s * eps``, velocity ``eps - x0``.

Everything is computed in float32, whatever precision the networks ran in.
"""

from __future__ import annotations

from torch import Tensor


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigmas (B,) in float32, shaped to multiply ``x`` (B, ...)."""
    return sigma.float().reshape(-1, *[1] * (x.ndim - 1))


def predicted_x0(x: Tensor, sigma: Tensor, velocity: Tensor) -> Tensor:
    """``x0_hat = x - sigma * v``, float32 (B, ...)."""
    return x.float() - per_sample(sigma, x) * velocity.float()


def noised(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """``(1 - sigma) * x0 + sigma * noise``, float32 (B, ...)."""
    s = per_sample(sigma, x0)
    return (1 - s) * x0.float() + s * noise.float()


def euler(x: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """One step of the deterministic ODE, ``x + (next_sigma - sigma) * v``, float32 (B, ...)."""
    return x.float() + per_sample(next_sigma - sigma, x) * velocity.float()
