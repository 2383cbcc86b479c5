"""The method, its ablations and its baselines: overrides of one recipe, or another CDM input.

What is an override can be trained by hand: ``cdm-distill RECIPE.toml --set loss.cdm=0``.
"""

from __future__ import annotations

VARIANTS: dict[str, tuple[str, ...]] = {
    "CDM": (),
    "D-DMD": ("loss.cdm=0", "schedule.kind=fixed"),
    "without CDM": ("loss.cdm=0",),
    "without DM": ("loss.dm=0",),
    "without CA": ("loss.ca=0",),
    "CA only": ("loss.dm=0", "loss.cdm=0"),
    "DM only": ("loss.ca=0", "loss.cdm=0"),
    "CDM only": ("loss.ca=0", "loss.dm=0"),
    "fixed schedule": ("schedule.kind=fixed",),
    "without extrapolation": (),
    "Gaussian perturbation": (),
}
