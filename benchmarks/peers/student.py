"""The student as a diffusers pipeline; what all peers have in common."""

from __future__ import annotations

import argparse
import base64
import io
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline


def load(folder: str) -> Any:
    """Load it in float32, ready to be called."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompts: list[str], seeds: list[int], bf16: bool) -> list[str]:
    """Return a PNG in base64 for each prompt; ``bf16`` is torch's autocast."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        pictures = pipeline(
            prompts,
            sigmas=[1.0, 0.75, 0.5, 0.25],
            num_inference_steps=4,
            guidance_scale=1.0,
            max_sequence_length=0,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
    return [_png(picture) for picture in pictures]


def parser() -> argparse.ArgumentParser:
    """Return the arguments every peer takes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("student")
    arguments.add_argument("port", type=int)
    arguments.add_argument("--batch", type=int, default=1)
    arguments.add_argument("--wait", type=float, default=0.0, help="seconds for a batch to fill")
    arguments.add_argument("--workers", type=int, default=1)
    arguments.add_argument("--bf16", action="store_true")
    arguments.add_argument("--lock", action="store_true", help="one picture at a time")
    return arguments


def _png(picture: Any) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
