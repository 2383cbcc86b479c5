"""What an update costs, counted in forwards.

One sample through one network is one unit. A trained pass is three: its backward computes two
products for the forward's one; or four, where activations are computed again.
"""

from __future__ import annotations

from distill.recipe import Recipe


def units_per_update(recipe: Recipe) -> dict[str, float]:
    """Units of one student update for each sample of the batch, on average over the schedules."""
    loss, iterations = recipe.loss, recipe.fake_updates
    trained = 4 if recipe.runtime.gradient_checkpointing else 3
    off = bool(loss.cdm) and loss.off_trajectory != "none"
    # Of a whole batch the forward at the student's last anchor is the first half of its own pass.
    shared = loss.on_trajectory and recipe.runtime.accumulate == 1
    return {
        "rollouts": iterations * (mean_anchor(recipe) - 1) + iterations - shared,
        "fake teacher's own passes": iterations * trained,
        "student's own pass": trained * (int(loss.on_trajectory) + off),
        "teacher's judgement": 2 * bool(loss.ca) + bool(loss.dm) + bool(loss.cdm),
        "fake teacher's judgement": bool(loss.dm) + bool(loss.cdm),
    }


def mean_anchor(recipe: Recipe) -> float:
    """The mean of i for i ~ U{1..N}, N ~ U{1..n_max}; or N the steps of a fixed schedule."""
    if recipe.schedule.kind == "fixed":
        return (recipe.steps + 1) / 2
    return (recipe.schedule.n_max + 3) / 4
