"""``cdm-distill RECIPE --dry-run``: what a run is and costs, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from distill.adapters import Adapter, load_skeleton
from distill.cost import (
    Footprint,
    estimate,
    footprint,
    host_estimate,
    mean_anchor,
    units_per_update,
)
from distill.parallel import samples_at_once
from distill.prompt_sources import is_dataset, read_prompts
from distill.recipe import Recipe

_WHEN = {"transformer": "teacher, student and fake teacher, always", "vae": "for previews"}


def dry_run(recipe: Recipe, processes: int, console: Console) -> None:
    """Print the resolved recipe, the networks, an update's forwards and each process's memory.

    Args:
        recipe: the run.
        processes: how many would train together.
        console: where to.

    Raises:
        DistillError: what the training itself would refuse, but for damaged weights.
    """
    share = samples_at_once(recipe.batch, processes, recipe.runtime.accumulate)
    # A dataset would have to be fetched whole.
    prompts = None if is_dataset(recipe.prompts) else len(read_prompts(recipe.prompts))
    adapter = load_skeleton(recipe.teacher, recipe.max_sequence_length)
    channels, h, w = adapter.latent_shape(recipe.height, recipe.width)
    network = footprint(adapter, recipe)
    for table in (
        _recipe_table(recipe),
        _network_table(adapter, network),
        _unit_table(recipe),
        _memory_table(network, recipe, processes),
        _host_table(host_estimate(network, adapter, recipe, processes, prompts)),
    ):
        console.print(table)
    console.print(
        f"{share} samples at a time in each process, latents {channels} x {h} x {w}. Activations "
        "are traced on the network without contents; kernels' workspaces, the allocator's waste "
        "and, while prompts are encoded, the text encoders come on top.",
        _prompt_line(recipe, processes, prompts),
        sep="\n",
    )


def _recipe_table(recipe: Recipe) -> Table:
    table = Table("key", "value", "", title="Recipe")
    defaults = _flat(asdict(Recipe(teacher="", output="", prompts="", height=1, width=1)))
    for key, value in _flat(asdict(recipe)).items():
        table.add_row(key, str(value), "default" if value == defaults[key] else "")
    return table


def _network_table(adapter: Adapter, network: Footprint) -> Table:
    table = Table("network", "parameters", "on the device", title="Networks")
    for name, part in adapter.networks.items():
        count = sum(p.numel() for p in part.parameters())
        table.add_row(name, f"{count:,}", _WHEN.get(name, "while prompts are encoded"))
    table.add_section()
    for name in ("student", "fake teacher"):
        table.add_row(f"trained in the {name}", f"{network.trained:,}", "")
    return table


def _unit_table(recipe: Recipe) -> Table:
    table = Table("of a student update, on average", "units", title="Forwards for each sample")
    units = units_per_update(recipe)
    for name, number in units.items():
        table.add_row(name, f"{number:g}")
    table.add_section()
    table.add_row("together", f"{sum(units.values()):g}")
    table.add_row(f"batch of {recipe.batch}", f"{recipe.batch * sum(units.values()):,.0f}")
    table.caption = f"a rollout's mean anchor is number {mean_anchor(recipe):g}"
    return table


def _memory_table(network: Footprint, recipe: Recipe, processes: int) -> Table:
    columns = {
        name + choice: estimate(network, _with_checkpointing(recipe, on), processes, sharded)
        for name, sharded in _modes(processes)
        for choice, on in (("", False), (", gradient checkpointing", True))
    }
    title = f"Memory of each process, {processes} together (GiB)"
    table = Table("", *columns, title=title)
    for row in {name: None for column in columns.values() for name in column}:
        table.add_row(row, *(_gib(column.get(row, 0)) for column in columns.values()))
    table.add_section()
    table.add_row("together", *(_gib(sum(column.values())) for column in columns.values()))
    return table


def _modes(processes: int) -> Iterator[tuple[str, bool]]:
    yield "data parallel" if processes > 1 else "alone", False
    if processes > 1:
        yield "FSDP2", True


def _with_checkpointing(recipe: Recipe, on: bool) -> Recipe:
    return replace(recipe, runtime=replace(recipe.runtime, gradient_checkpointing=on))


def _host_table(bytes_of: dict[str, int]) -> Table:
    table = Table("", "GiB", title="Host memory of each process")
    for name, size in bytes_of.items():
        table.add_row(name, _gib(size))
    table.add_section()
    embeddings, *others = bytes_of.values()
    table.add_row("at most", _gib(embeddings + sum(others[:1]) + max(others[1:])))
    table.caption = "text encoders and VAE are mapped from their files, once a machine"
    return table


def _prompt_line(recipe: Recipe, processes: int, prompts: int | None) -> str:
    most = recipe.runtime.prompts_in_memory // processes
    held, count = (most, "a dataset") if prompts is None else (min(most, prompts), f"{prompts:,}")
    return f"Prompts: {count}; {held:,} embeddings at a time in each process."


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}" if size >= 2**30 else f"{size / 2**30:.4f}"
