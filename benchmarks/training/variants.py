"""The method, its ablations and its baselines: overrides of one recipe, or another CDM input.

What is an override can be trained by hand: ``cdm-distill RECIPE.toml --set loss.cdm=0``.
"""

from distill.flow import Anchors, Point, noised
from distill.rng import Level
from distill.trainer import Trainer

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
    "anchor not told": ("critic.anchor=false",),
}


class AtTheAnchor(Trainer):
    """CDM takes the student where CA and DM do."""

    def _off_trajectory(self, anchors: Anchors, level: Level) -> Point:
        return anchors


class Perturbed(Trainer):
    """CDM takes the student at fresh noise on its own picture."""

    def _off_trajectory(self, anchors: Anchors, level: Level) -> Point:
        x = noised(anchors.x0(anchors.velocity.detach()), level.sigma, level.noise)
        return Point(x, level.sigma, anchors.condition)


TRAINERS: dict[str, type[Trainer]] = {
    "without extrapolation": AtTheAnchor,
    "Gaussian perturbation": Perturbed,
}
