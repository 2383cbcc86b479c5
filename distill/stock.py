"""A student's scheduler so that diffusers, called without ``sigmas``, takes the student's grid."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

from distill.adapters import Adapter


def write_stock(adapter: Adapter, steps: int, height: int, width: int, folder: Path) -> None:
    """Rewrite the scheduler of a saved student, and say its noise levels in its index.

    Servers that know FastGen's ``dmd2_config`` read the levels; others take the scheduler's grid.
    """
    stock_scheduler(adapter, steps).save_pretrained(folder / "scheduler")
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    levels = adapter.sigmas(steps, height, width)[:-1]
    index["dmd2_config"] = {
        "num_inference_steps": steps,
        "denoising_timesteps": [round(1000 * level, 4) for level in levels],
        "solver": "euler",
        "guidance_scale": adapter.guidance_scale,
    }
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def stock_scheduler(adapter: Adapter, steps: int) -> Any:
    """The scheduler whose grid of ``steps``, taken without ``sigmas``, is the even one shifted.

    Without ``sigmas`` diffusers spreads the steps from 1 to the shifted level of the last training
    timestep and shifts again. With n training timesteps that is, up to a factor which
    ``shift_terminal`` sets, 1 - sigma_i ~ i / (1 - i (b - 1)/b (n - 1)/(n - 1 + b) / (steps - 1))
    for a shift b; the even grid under shift a has 1 - sigma_i ~ i / (1 - i (a - 1)/(a steps)).
    Both are equal for the b that solves a quadratic equation.

    Pipelines that give an even grid themselves, dynamic shifts, one step, and shifts that no b
    gives keep their scheduler.
    """
    scheduler = adapter.pipeline.scheduler
    config = scheduler.config
    if steps == 1 or not adapter.scheduler_grid or config.use_dynamic_shifting:
        return scheduler
    shift, last = config.shift, config.num_train_timesteps - 1
    k = (shift - 1) * (steps - 1) / (shift * steps)
    root = ((1 - k) * last) ** 2 - 4 * k * last
    if root < 0:
        return scheduler
    return type(scheduler).from_config(
        config,
        shift=2 * last / ((1 - k) * last + sqrt(root)),
        shift_terminal=shift / (steps + shift - 1),
    )
