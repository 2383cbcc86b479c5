"""The stages of a student by torch, as diffusers runs them; see ``stages``."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.prompts import prompt
from distill.adapters import Adapter
from export.student import load_student


class TorchStages:
    """In the type that the networks have.

    Args:
        adapter: with its networks on ``device``.
        steps: of a picture.
        device: torch's name of it.
        autocast: compute in bfloat16 whatever the networks' type.
        compiled: by ``torch.compile``; where there is no GPU, without a compiler of machine code.
    """

    def __init__(
        self,
        adapter: Adapter,
        steps: int,
        device: str,
        *,
        autocast: bool = False,
        compiled: bool = False,
    ) -> None:
        self.adapter, self.steps, self.device = adapter, steps, device
        self.transformer: Any = adapter.transformer
        self._autocast = autocast
        self._dtype = next(adapter.transformer.parameters()).dtype
        if compiled:
            backend = "inductor" if device == "cuda" else "eager"
            self.transformer = torch.compile(self.transformer, backend=backend)
            vae = adapter.pipeline.vae
            vae.decode = torch.compile(vae.decode, backend=backend)
        self._condition = self.text(1)

    def text(self, batch: int) -> Any:
        with self._precision():
            condition = self.adapter.encode([prompt(number) for number in range(batch)])
            self.synchronize()
        return condition

    def step(self, batch: int, size: str) -> Any:
        sigma = torch.ones(batch, device=self.device, dtype=self._dtype)
        with self._precision():
            condition = self._condition.expand(batch)
            velocity = self._velocity(self._noise(batch, size), sigma, condition)
            self.synchronize()
        return velocity

    def decode(self, batch: int, size: str) -> Any:
        with self._precision():
            return self._pixels(self._noise(batch, size))

    def picture(self, batch: int, size: str) -> Any:
        width, height = map(int, size.split("x"))
        sigmas = self.adapter.sigmas(self.steps, height, width)
        with self._precision():
            condition = self.text(batch)
            latents = self._noise(batch, size)
            for sigma, following in pairwise(sigmas):
                rows = torch.full((batch,), float(sigma), device=self.device, dtype=self._dtype)
                velocity = self._velocity(latents, rows, condition)
                latents = latents + float(following - sigma) * velocity
            return self._pixels(latents)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device, torch.bfloat16, enabled=self._autocast),
        ):
            yield

    def _noise(self, batch: int, size: str) -> Tensor:
        width, height = map(int, size.split("x"))
        shape = (batch, *self.adapter.latent_shape(height, width))
        return torch.randn(shape, device=self.device, dtype=self._dtype)

    def _velocity(self, x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        velocity = self.adapter.velocity(self.transformer, x, sigma, condition)
        return velocity.to(self._dtype)

    def _pixels(self, latents: Tensor) -> Any:
        images = self.adapter.decode(latents).float()
        pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()


def student_stages(folder: Path, steps: int, low: bool) -> TorchStages:
    """A student in float32 on the CPU; ``low`` computes in bfloat16 by autocast."""
    return TorchStages(load_student(folder).adapter, steps, "cpu", autocast=low)
