"""Memory and hours to expect of distilling SD3-Medium and LongCat-Image, from shapes alone.

``python -m benchmarks.distill_cost --out result.json``. The published networks are built without
contents, traced by ``distill.memory`` as ``cdm-distill --dry-run`` does, and one forward is counted
in floating-point operations. Hours are the recipe's units of work, times a forward, by a share of
the GPU's peak that is assumed, not measured: nothing here ran on a GPU. The networks' numbers of
layers and widths are written down in ``export_full_size``, since no hub was reachable.

Left out of the hours: what GPUs say to each other, optimisers, prompts' encoding, previews,
evaluation. Left out of the bytes: see ``distill.memory``; a tenth of each GPU is kept for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LongCatImageTransformer2DModel,
    SD3Transformer2DModel,
)
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.errors import BenchError
from benchmarks.export_full_size import CONFIGURATIONS
from benchmarks.record import write_result
from distill.adapters import Adapter
from distill.adapters.longcat import LongCatAdapter
from distill.adapters.sd3 import Sd3Adapter
from distill.memory import Footprint, estimate, footprint
from distill.recipe import LoraRecipe, Recipe
from distill.recipe_file import read_recipe
from distill.skeleton import condition_of
from distill.units import units_per_update

RECIPES = {"sd3": "sd3-medium", "longcat": "longcat-image"}
TEXT_TOKENS = {"sd3": 77, "longcat": 512}
LORA_RANK = 64
# Of the peak rate that a trained transformer of this size may be expected to reach.
SHARE = 0.4
# Kept for what the count leaves out.
SPARE = 0.1


@dataclass(frozen=True)
class Gpu:
    """What its maker says: bytes, and dense bfloat16 operations a second."""

    name: str
    bytes: float
    peak: float


GPUS = (Gpu("A100 80 GB", 80e9, 312e12), Gpu("H200", 141e9, 989e12))


@dataclass(frozen=True)
class Layout:
    """How a run is spread: a file of ``distill/accelerate``."""

    file: str
    processes: int
    sharded: bool
    lora: bool = False


LAYOUTS = (
    Layout("one-gpu", 1, False),
    Layout("one-gpu", 1, False, lora=True),
    Layout("eight-gpus", 8, False),
    Layout("eight-gpus-sharded", 8, True),
    Layout("two-machines", 16, False),
    Layout("two-machines-sharded", 16, True),
)


def main(argv: list[str] | None = None) -> int:
    """Count, print the table, and write it to ``--out``; 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.distill_cost", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    arguments = parser.parse_args(argv)
    models = {name: measure(name) for name in RECIPES}
    for name, model in models.items():
        Console().print(_table(name, model))
    result = {
        "measured_on_a_gpu": False,
        "share_of_peak": SHARE,
        "spare": SPARE,
        "gpus": [asdict(gpu) for gpu in GPUS],
        "models": models,
    }
    try:
        if arguments.out is not None:
            write_result(arguments.out, result)
    except BenchError as error:
        print(f"distill_cost: {error}", file=sys.stderr)
        return 2
    return 0


def measure(name: str) -> dict[str, Any]:
    """One model: its recipe, a forward's cost, and every layout on every GPU."""
    path = Path(__file__).parents[1] / "distill" / "recipes" / f"{RECIPES[name]}.toml"
    recipe = read_recipe(path)
    adapter = skeleton(name, CONFIGURATIONS[name])
    flops = forward_flops(adapter, recipe)
    networks = {
        lora: footprint(adapter, replace(recipe, lora=LoraRecipe(rank=LORA_RANK if lora else 0)))
        for lora in (False, True)
    }
    return {
        "configuration": CONFIGURATIONS[name],
        "recipe": RECIPES[name],
        "weights": sum(weight.numel() for weight in adapter.transformer.parameters()),
        "batch": recipe.batch,
        "updates": recipe.updates,
        "forward_flops": flops,
        "units_per_sample": sum(units_per_update(recipe).values()),
        "footprint": asdict(networks[False]),
        "layouts": [
            asdict(layout) | {"gpu": gpu.name, **spread}
            for layout in LAYOUTS
            for gpu in GPUS
            for spread in [fit(networks[layout.lora], recipe, flops, layout, gpu)]
        ],
    }


def skeleton(name: str, configuration: dict[str, Any]) -> Adapter:
    """An adapter around a network on the meta device; the rest of the pipeline is not there."""
    network = SD3Transformer2DModel if name == "sd3" else LongCatImageTransformer2DModel
    with torch.device("meta"):
        transformer = network(**configuration)
    pipeline: Any = SimpleNamespace(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae_scale_factor=8,
        tokenizer_max_length=TEXT_TOKENS[name],
    )
    return (Sd3Adapter if name == "sd3" else LongCatAdapter)(pipeline)


def forward_flops(adapter: Adapter, recipe: Recipe) -> int:
    """Floating-point operations of one sample's forward, a unit; a multiply-add is two."""
    network: Any = adapter.transformer
    # As plain products: the counter does not know every attention kernel.
    with FakeTensorMode(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network = type(network).from_config(network.config)
        x = torch.empty(1, *adapter.latent_shape(recipe.height, recipe.width))
        condition = condition_of(adapter, 1)
        with FlopCounterMode(display=False) as counter:
            adapter.velocity(network, x, torch.empty(1), condition)
    total: int = counter.get_total_flops()
    return total


def fit(network: Footprint, recipe: Recipe, flops: int, layout: Layout, gpu: Gpu) -> dict[str, Any]:
    """The largest part of the batch at once that the GPU holds, its bytes, and the run's hours.

    Where not even one sample fits, the bytes are those of one and there are no hours.
    """
    room = (1 - SPARE) * gpu.bytes
    for tried in _divided(recipe, layout.processes):
        parts = estimate(network, tried, layout.processes, layout.sharded)
        samples = recipe.batch // layout.processes // tried.runtime.accumulate
        if sum(parts.values()) <= room:
            units = recipe.updates * recipe.batch * sum(units_per_update(tried).values())
            hours = units * flops / (layout.processes * SHARE * gpu.peak) / 3600
            return _spread(samples, parts) | {"hours": round(hours, 1)}
    return _spread(samples, parts) | {"hours": None}


def _divided(recipe: Recipe, processes: int) -> Iterator[Recipe]:
    """The recipe with its share of the batch at once, then in more and more parts."""
    share = recipe.batch // processes
    for parts in range(1, share + 1):
        if share % parts == 0:
            yield replace(recipe, runtime=replace(recipe.runtime, accumulate=parts))


def _spread(samples: int, parts: dict[str, int]) -> dict[str, Any]:
    return {"samples_at_once": samples, "bytes": sum(parts.values()), "bytes_by_use": parts}


def _table(name: str, model: dict[str, Any]) -> Table:
    table = Table(
        title=f"{name}: {model['weights'] / 1e9:.2f}e9 weights, a forward "
        f"{model['forward_flops'] / 1e12:.1f} TFLOP, {model['units_per_sample']:g} forwards a "
        f"sample, {model['batch']} samples an update, {model['updates']} updates; "
        f"{SHARE:.0%} of the peak assumed, nothing measured"
    )
    for column in ("file", "LoRA", "GPU", "GPUs", "samples at once", "GB", "hours"):
        table.add_column(column, justify="left" if column in ("file", "GPU") else "right")
    for each in model["layouts"]:
        hours = each["hours"]
        table.add_row(
            each["file"],
            str(LORA_RANK) if each["lora"] else "",
            each["gpu"],
            str(each["processes"]),
            str(each["samples_at_once"]),
            f"{each['bytes'] / 1e9:.0f}",
            "does not fit" if hours is None else f"{hours:.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
