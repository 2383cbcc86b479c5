"""What ``cdm-bench distill`` and ``cdm-bench ablation`` do; imported when one of them runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import diffusers
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.ablation import STEPS, TEACHER, Ablation, accuracy, run_ablation
from benchmarks.chart import Chart, save_charts
from benchmarks.distill import FASTER, UNITS_OURS, UNITS_RELEASED, Spread, UpdateCost, measure
from benchmarks.record import write_result
from distill.recipe import read_recipe


def distill(arguments: argparse.Namespace, console: Console) -> int:
    """Count and time an update in both forms."""
    _quiet()
    overrides = [f"schedule.n_max={arguments.n_max}", f"batch={arguments.batch}", *arguments.set]
    recipe = read_recipe(arguments.recipe, overrides)
    columns = (TextColumn("updates"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=2 * (arguments.updates + arguments.pairs))
        cost = measure(recipe, arguments.updates, arguments.pairs, lambda: progress.advance(task))
    console.print(_cost_table(cost))
    if arguments.out:
        write_result(arguments.out, asdict(cost))
    return 0


def ablation(arguments: argparse.Namespace, console: Console) -> int:
    """Train and judge every variant; 130 when interrupted."""
    _quiet()
    budget = {
        "updates": arguments.updates,
        "batch": arguments.batch,
        "schedule.n_max": arguments.n_max,
    }
    given = [f"{key}={value}" for key, value in budget.items() if value is not None]
    plan = Ablation(
        recipe=arguments.recipe,
        overrides=(*given, *arguments.set),
        judge=arguments.judge,
        pictures=arguments.pictures,
        subjects=arguments.subjects,
        guidance=arguments.guidance,
    )
    results = run_ablation(plan, arguments.only, arguments.folder, console)
    if results is None:
        console.print("stopped; the same command goes on from here")
        return 130
    console.print(_ablation_table(results))
    write_result(arguments.folder / "ablation.json", results)
    save_charts(_charts(results), arguments.folder / "ablation.png")
    return 0


def _quiet() -> None:
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def _cost_table(cost: UpdateCost) -> Table:
    table = Table(title=f"A student update, N_max {cost.n_max}, batch {cost.batch}, {cost.device}")
    for name in ("", "ours", "released", "ratio", "bar"):
        table.add_column(name, justify="left" if not name else "right")

    def spread(of: Spread, digits: int) -> str:
        return f"{of.median:.{digits}f} ({of.low:.{digits}f} - {of.high:.{digits}f})"

    ours, released = cost.units_ours, cost.units_released
    table.add_row(
        "forwards, mean",
        f"{ours.mean:.2f} ± {ours.error:.2f}",
        f"{released.mean:.2f} ± {released.error:.2f}",
        f"{released.mean / ours.mean:.2f}",
        f"{UNITS_OURS:g} against {UNITS_RELEASED:g}",
    )
    table.add_row(
        "seconds, median (quartiles)",
        spread(cost.seconds_ours, 2),
        spread(cost.seconds_released, 2),
        spread(cost.faster, 2),
        f"{FASTER}",
    )
    table.caption = (
        f"{cost.counted_updates} updates counted, {cost.timed_pairs} pairs timed; "
        f"all seconds together {cost.faster_overall:.2f}"
    )
    return table


def _ablation_table(results: dict[str, Any]) -> Table:
    table = Table(title="Accuracy and Fréchet distance by number of steps")
    table.add_column("")
    for steps in STEPS:
        table.add_column(str(steps), justify="right")
    for name, result in results["results"].items():
        if name == TEACHER:
            ((steps, scores),) = result["steps"].items()
            table.caption = f"teacher, {steps} steps, guided: {_cell(scores)}"
        else:
            table.add_row(name, *(_cell(result["steps"][str(steps)]) for steps in STEPS))
    return table


def _cell(scores: dict[str, Any]) -> str:
    return f"{accuracy(scores):.1%} {scores['frechet']:.1f}"


def _charts(results: dict[str, Any]) -> list[Chart]:
    """Accuracy and distance; the worst tenth of the distances is cut off."""
    by_name = {name: r["steps"] for name, r in results["results"].items() if name != TEACHER}
    ((_, teacher),) = results["results"][TEACHER]["steps"].items()
    places = [str(steps) for steps in STEPS]
    distances = {n: [by[s]["frechet"] for s in places] for n, by in by_name.items()}
    teachers = {"teacher, guided": [accuracy(teacher)] * len(places)}
    accuracies = {n: [accuracy(by[s]) for s in places] for n, by in by_name.items()}
    high = sorted(value for line in distances.values() for value in line)
    return [
        Chart("accuracy by steps", places, accuracies | teachers, 0.0, 1.0),
        Chart(
            "Frechet distance by steps",  # the chart's font has no accents
            places,
            distances | {"teacher, guided": [teacher["frechet"]] * len(places)},
            0.0,
            1.1 * high[int(0.9 * (len(high) - 1))],
        ),
    ]
