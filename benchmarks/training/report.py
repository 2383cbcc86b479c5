"""What ``cdm-bench distill`` prints and keeps: the cost of an update, or the ablation."""

import argparse
from typing import Any

import diffusers
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.errors import picked
from benchmarks.figures import spread_text, table_of
from benchmarks.progress import progress
from benchmarks.record import Record
from benchmarks.training.ablation import STEPS, TEACHER, Ablation, accuracy, run_ablation
from benchmarks.training.cost import measure
from benchmarks.training.variants import VARIANTS
from distill.recipe import read_recipe


def distill(arguments: argparse.Namespace, console: Console) -> int:
    """Count and time an update in both forms; or train and judge the variants."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    return (_ablation if arguments.ablation else _cost)(arguments, console)


def _cost(arguments: argparse.Namespace, console: Console) -> int:
    recipe = read_recipe(arguments.recipe, arguments.set)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record = Record(arguments.out, "distill", gpu=gpu)
    total = 2 * (arguments.updates + arguments.pairs)
    with progress("updates", total, console) as advance:
        cost = measure(recipe, arguments.updates, arguments.pairs, advance)
    console.print(_cost_table(cost))
    record.write(cost)
    console.print(f"kept in {record.path}")
    return 0


def _ablation(arguments: argparse.Namespace, console: Console) -> int:
    """130 when interrupted."""
    record = Record(arguments.out, "ablation")
    names = picked("--only", arguments.only, VARIANTS)
    plan = Ablation(arguments.recipe, tuple(arguments.set), arguments.pictures)
    results = run_ablation(plan, names, arguments.folder, console)
    if results is None:
        console.print("stopped; the same command goes on from here")
        return 130
    console.print(_ablation_table(results))
    record.write(results)
    console.print(f"kept in {record.path}")
    return 0


def _cost_table(cost: dict[str, Any]) -> Table:
    title = f"A student update, N_max {cost['n_max']}, batch {cost['batch']}"
    table = table_of(title, ("", "ours", "released", "ratio"))
    ours, released = cost["units_ours"], cost["units_released"]
    table.add_row(
        "forwards, mean",
        *(f"{units['mean']:.2f} ± {units['error']:.2f}" for units in (ours, released)),
        f"{released['mean'] / ours['mean']:.2f}",
    )
    table.add_row(
        "seconds, median (quartiles)",
        *(spread_text(cost[name]) for name in ("seconds_ours", "seconds_released", "faster")),
    )
    table.caption = (
        f"{cost['counted_updates']} updates counted, {cost['timed_pairs']} pairs timed; "
        f"all seconds together {cost['faster_overall']:.2f}"
    )
    return table


def _ablation_table(results: dict[str, Any]) -> Table:
    table = table_of("Accuracy and Fréchet distance by number of steps", ("", *map(str, STEPS)))
    for name, result in results["results"].items():
        if name == TEACHER:
            ((steps, scores),) = result["steps"].items()
            table.caption = f"teacher, {steps} steps, guided: {_cell(scores)}"
        else:
            table.add_row(name, *(_cell(result["steps"][str(steps)]) for steps in STEPS))
    return table


def _cell(scores: dict[str, Any]) -> str:
    return f"{accuracy(scores):.1%} {scores['frechet']:.1f}"
