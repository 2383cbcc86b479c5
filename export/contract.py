"""How a student is meant to be sampled: its number of steps and the grid of noise levels.

Said by hand, else by ``cdm.json``, by ``dmd2_config`` in ``model_index.json`` (FastGen, vLLM-Omni),
by a table of published checkpoints, or else it is what diffusers does without being told.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from distill.adapters import Adapter
from distill.adapters.adapter import Grid
from export.errors import ExportError
from export.request import Sampling

DEFAULT_STEPS = 4
# Steps and grid of checkpoints that do not say it themselves, as their cards have it.
WELL_KNOWN = {
    "byliutao/stable-diffusion-3-medium-turbo": (4, "even"),
    "byliutao/longcat-image-turbo": (4, "even"),
    "stabilityai/stable-diffusion-3.5-large-turbo": (4, "default"),
    "tensorart/stable-diffusion-3.5-medium-turbo": (8, "default"),
    "black-forest-labs/flux.1-schnell": (4, "default"),
    "black-forest-labs/flux.2-klein-4b": (4, "default"),
    "tongyi-mai/z-image-turbo": (8, "default"),
}
_SOLVERS = (None, "euler", "ode")


@dataclass(frozen=True)
class Contract:
    """Steps, and where the noise levels lie.

    Attributes:
        steps: unless a request says otherwise.
        grid: ``even`` or ``default``, of all numbers of steps without ``own`` sigmas.
        own: by number of steps, the sigmas that the pipeline is called with.
        source: where it was taken from.
        guidance: what a guidance embedding is given; ``None`` without one.
    """

    steps: int
    grid: Grid
    source: str
    own: dict[int, tuple[float, ...]] = field(default_factory=dict)
    guidance: float | None = None

    def of(self, steps: int) -> Grid:
        """The grid of so many steps."""
        return self.own.get(steps, self.grid)

    def __str__(self) -> str:
        grid = self.of(self.steps)
        sigmas = f"{grid} sigmas" if isinstance(grid, str) else f"sigmas {list(grid)}"
        guidance = "without guidance" if self.guidance is None else f"told guidance {self.guidance}"
        return f"{self.steps} steps {guidance}, {sigmas}: {self.source}"

    def to_json(self) -> dict[str, Any]:
        """The ``contract`` entry of export.json."""
        own = {str(steps): list(sigmas) for steps, sigmas in self.own.items()}
        contents = {"grid": self.grid, "own": own, "source": self.source}
        return contents if self.guidance is None else contents | {"guidance": self.guidance}


def contract(
    folder: Path,
    card: dict[str, Any],
    index: dict[str, Any],
    adapter: Adapter,
    asked: Sampling,
    base: Path | None = None,
) -> Contract:
    """The contract of the student in ``folder``; what was ``asked`` by hand comes first.

    Where nothing says it, it is that of its ``base``.

    Raises:
        ExportError: what a file says cannot be served.
    """
    found = _found(folder, card, index, adapter, base)
    if asked.guidance is not None:
        if not adapter.guidance_embedding:
            raise ExportError(
                f"--guidance {asked.guidance}: {folder} has no guidance embedding; leave it out"
            )
        adapter.guidance_scale = asked.guidance
    if asked.shift is not None:
        adapter.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=asked.shift)
    if adapter.guidance_embedding:
        found = replace(found, guidance=adapter.guidance_scale)
    said = [f"--{name}" for name, value in vars(asked).items() if value is not None]
    if not said:
        return found
    steps = asked.steps or (len(asked.sigmas) if asked.sigmas else found.steps)
    kept = {} if asked.grid else found.own
    own = {len(asked.sigmas): asked.sigmas} if asked.sigmas else kept
    source = f"{' and '.join(said)}, the rest as {found.source}"
    return replace(found, steps=steps, grid=asked.grid or found.grid, source=source, own=own)


def _found(
    folder: Path,
    card: dict[str, Any],
    index: dict[str, Any],
    adapter: Adapter,
    base: Path | None,
) -> Contract:
    if card:
        return _of_card(folder / "cdm.json", card, adapter)
    if isinstance(config := index.get("dmd2_config"), dict):
        return _of_dmd2(folder / "model_index.json", config, adapter)
    name = _known_name(str(index.get("_name_or_path", "")), *_parts(folder), *_parts(base))
    if name is not None:
        steps, grid = WELL_KNOWN[name]
        return Contract(steps, "even" if grid == "even" else "default", f"{name} is known")
    return Contract(
        DEFAULT_STEPS,
        "default",
        "nothing says it, so as diffusers does (--steps, --sigmas or --grid even say it by hand)",
    )


def _of_card(path: Path, card: dict[str, Any], adapter: Adapter) -> Contract:
    steps = card["steps"]
    _take_guidance(path, card.get("guidance_scale"), adapter)
    given = card.get("sigmas")
    grids = {str(steps): given} if isinstance(given, list) else given
    if not isinstance(grids, dict) or str(steps) not in grids:
        raise ExportError(
            f"{path}: sigmas must be the list for {steps} steps, or lists by number of steps"
        )
    own = {}
    for key, sigmas in grids.items():
        if not (key.isdecimal() and _falls(sigmas) and len(sigmas) == int(key)):
            raise ExportError(
                f"{path}: sigmas for {key} steps must be {key} numbers that fall from at most 1 to "
                "above 0, before the scheduler's shift"
            )
        even = [1.0 - i / len(sigmas) for i in range(len(sigmas))]
        if not np.array_equal(np.round(sigmas, 6), np.round(even, 6)):
            own[int(key)] = tuple(map(float, sigmas))
    return Contract(steps, "even", "cdm.json says it", own)


def _of_dmd2(path: Path, config: dict[str, Any], adapter: Adapter) -> Contract:
    """``denoising_timesteps`` are noise levels after the shift, of 1000 or of 1."""
    if config.get("solver") not in _SOLVERS:
        raise ExportError(
            f"{path}: dmd2_config has solver {config['solver']!r}; a student is served by Euler "
            "steps"
        )
    if config.get("guidance_scale") is not None:
        _take_guidance(path, config["guidance_scale"], adapter)
    source = "dmd2_config in model_index.json says it"
    levels = config.get("denoising_timesteps")
    if levels is None:
        levels, steps = [], config.get("num_inference_steps")
    else:
        levels = [level for level in levels if level] if isinstance(levels, list) else [None]
        if all(type(level) in (int, float) for level in levels) and max(levels, default=0) > 1:
            levels = [level / 1000 for level in levels]
        steps = config.get("num_inference_steps", len(levels))
        if not _falls(levels) or len(levels) != steps:
            raise ExportError(
                f"{path}: dmd2_config must have as many denoising_timesteps, falling, as "
                "num_inference_steps"
            )
    if type(steps) is not int or steps < 1:
        raise ExportError(f"{path}: dmd2_config needs num_inference_steps of at least 1")
    side = adapter.default_side
    named: tuple[Grid, Grid] = ("default", "even")
    for grid in named if levels else named[:1]:
        found = adapter.sigmas(steps, side, side, grid)[:-1]
        if not levels or np.allclose(found, levels, atol=1e-3):  # timesteps may be rounded
            return Contract(steps, grid, source)
    # The levels are of no grid that the scheduler makes: it is not to move them.
    adapter.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return Contract(steps, "even", source, {steps: tuple(levels)})


def _take_guidance(path: Path, scale: Any, adapter: Adapter) -> None:
    """Tell a guidance embedding its scale; without one a student is sampled without guidance."""
    if type(scale) not in (int, float) or not (scale in (0, 1) or adapter.guidance_embedding):
        raise ExportError(
            f"{path}: guidance_scale is {scale!r}; expected 0 or 1: a student is served without "
            "guidance, but for one with a guidance embedding"
        )
    if adapter.guidance_embedding:
        adapter.guidance_scale = float(scale)


def _falls(sigmas: Any) -> bool:
    """Whether these are numbers that fall from at most 1 to above 0."""
    return (
        isinstance(sigmas, list | tuple)
        and all(type(sigma) in (int, float) for sigma in sigmas)
        and bool(sigmas)
        and all(a > b for a, b in zip([1.0 + 1e-9, *sigmas], [*sigmas, 0.0], strict=True))
    )


def _parts(path: Path | None) -> tuple[str, ...]:
    return () if path is None else path.resolve().parts


def _known_name(*texts: str) -> str | None:
    """The published checkpoint that a folder or a hub's cache is named after."""
    words = {text.lower().removeprefix("models--").replace("--", "/") for text in texts}
    for name in WELL_KNOWN:
        if name in words or name.split("/")[1] in words:
            return name
    return None
