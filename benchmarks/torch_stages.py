"""The stages of a student by torch and diffusers, eager; see ``stages``."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.prompts import prompt
from cdm_serve.engine.manifest import Manifest
from export.student import load_student

BANDWIDTH_BYTES = 2**28


class TorchStages:
    """On a GPU where there is one; ``low`` computes in bfloat16 by autocast."""

    def __init__(self, student: Path, manifest: Manifest, *, low: bool) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._manifest = manifest
        self._low = low
        self._adapter = load_student(student).adapter
        self._adapter.pipeline.to(self.device)
        with torch.inference_mode():
            self._condition = self._adapter.encode(["a fox"])

    def text(self, batch: int) -> Any:
        """See ``Stages``."""
        with torch.inference_mode(), self._precision():
            condition = self._adapter.encode([prompt(number) for number in range(batch)])
            self._synchronize()
        return condition

    def step(self, batch: int, size: str) -> Any:
        """See ``Stages``."""
        sigma = torch.ones(batch, device=self.device)
        with torch.inference_mode(), self._precision():
            velocity = self._velocity(
                self._latents(batch, size), sigma, self._condition.expand(batch)
            )
            self._synchronize()
        return velocity

    def decode(self, batch: int, size: str) -> Any:
        """See ``Stages``."""
        with torch.inference_mode(), self._precision():
            return self._pixels(self._latents(batch, size))

    def picture(self, batch: int, size: str) -> Any:
        """See ``Stages``."""
        grid = torch.tensor(self._manifest.sigmas[size][self._manifest.default_steps])
        sigmas = grid.to(self.device)
        with torch.inference_mode(), self._precision():
            condition = self.text(batch)
            latents = self._latents(batch, size)
            for sigma, following in pairwise(sigmas):
                velocity = self._velocity(latents, sigma.expand(batch), condition)
                latents = latents + (following - sigma) * velocity
            return self._pixels(latents)

    def gemm(self, side: int) -> Callable[[], Any]:
        """See ``Stages``."""
        dtype = torch.bfloat16 if self._low else torch.float32
        x, w = torch.randn(2, side, side, device=self.device, dtype=dtype)

        def run() -> None:
            x @ w
            self._synchronize()

        return run

    def count(self, size: str) -> dict[str, Any]:
        """Operations of each stage at batch 1, and its parameters."""
        pipeline = self._adapter.pipeline
        networks = {
            "text": [getattr(pipeline, name, None) for name in _TEXT_ENCODERS],
            "step": [pipeline.transformer],
            "decode": [pipeline.vae.decoder, pipeline.vae.post_quant_conv],
        }
        runs: dict[str, Callable[[], Any]] = {
            "text": lambda: self.text(1),
            "step": lambda: self.step(1, size),
            "decode": lambda: self.decode(1, size),
        }
        counted: dict[str, Any] = {}
        for stage, run in runs.items():
            # As plain products: the counter does not know every attention kernel.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run()
            counted[stage] = {
                "flops": counter.get_total_flops(),
                "parameters": sum(
                    weight.numel()
                    for each in networks[stage]
                    if each
                    for weight in each.parameters()
                ),
            }
        return counted

    def bandwidth(self, seconds: float) -> float:
        """Bytes a second that are read when a large array is summed up."""
        array = torch.ones(BANDWIDTH_BYTES // 4, device=self.device)
        best, end, left = float("inf"), time.perf_counter() + seconds, 3
        while left > 0 or time.perf_counter() < end:
            begin = time.perf_counter()
            array.sum()
            self._synchronize()
            best = min(best, time.perf_counter() - begin)
            left -= 1
        return BANDWIDTH_BYTES / best

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self._low)

    def _latents(self, batch: int, size: str) -> torch.Tensor:
        return torch.randn(batch, *self._manifest.latent_shape(size), device=self.device)

    def _velocity(self, x: torch.Tensor, sigma: torch.Tensor, condition: Any) -> torch.Tensor:
        return self._adapter.velocity(self._adapter.transformer, x, sigma, condition).float()

    def _pixels(self, latents: torch.Tensor) -> Any:
        images = self._adapter.decode(latents).float()
        pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
