"""What the peers have in common; they run in an environment of their own (``PACKAGES``)."""

import argparse
import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from pydantic import BaseModel


class Request(BaseModel):
    """What is used of OpenAI's request."""

    prompt: str
    seed: int
    num_inference_steps: int | None = None


class Contract:
    """How the student wants to be asked, as its ``cdm.json`` says."""

    def __init__(self, student: Path) -> None:
        card = json.loads((student / "cdm.json").read_text(encoding="utf-8"))
        self.steps: int = card["steps"]
        self.arguments = {
            name: card[name]
            for name in ("guidance_scale", "max_sequence_length", "height", "width")
        }


def load(student: Path) -> Any:
    """Return the student as a diffusers pipeline in float32."""
    index = json.loads((student / "model_index.json").read_text(encoding="utf-8"))
    absent = {name: None for name, value in index.items() if value == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(student, torch_dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    # A student's own scheduler is right without sigmas alone; here they are given.
    card = json.loads((student / "cdm.json").read_text(encoding="utf-8"))
    if "shift" in card:
        plain = {"shift": card["shift"], "shift_terminal": None}
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, **plain)
    return pipeline


def draw(pipeline: Any, contract: Contract, requests: Sequence[Request]) -> list[str]:
    """Return a PNG in base64 for each; those of the same number of steps share a batch."""
    drawn = [""] * len(requests)
    wanted = [request.num_inference_steps or contract.steps for request in requests]
    for steps in set(wanted):
        rows = [row for row, each in enumerate(wanted) if each == steps]
        pictures = pipeline(
            [requests[row].prompt for row in rows],
            num_inference_steps=steps,
            sigmas=[1 - step / steps for step in range(steps)],
            generator=[torch.Generator().manual_seed(requests[row].seed) for row in rows],
            **contract.arguments,
        ).images
        for row, picture in zip(rows, pictures, strict=True):
            drawn[row] = png(picture)
    return drawn


def png(picture: Any) -> str:
    """Return the file in base64, made in the fastest way."""
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def answer(picture: str) -> dict[str, Any]:
    """Return OpenAI's form of it."""
    return {"data": [{"b64_json": picture}]}


def parser() -> argparse.ArgumentParser:
    """Return the arguments every peer takes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("student", type=Path)
    arguments.add_argument("port", type=int)
    arguments.add_argument("--openvino", type=Path, help="folder of the student's OpenVINO models")
    arguments.add_argument("--batch", type=int, default=1)
    arguments.add_argument("--wait", type=float, default=0.0, help="seconds for a batch to fill")
    arguments.add_argument("--workers", type=int, default=1)
    arguments.add_argument("--bf16", action="store_true", help="torch's autocast")
    arguments.add_argument("--lock", action="store_true", help="one picture at a time")
    return arguments
