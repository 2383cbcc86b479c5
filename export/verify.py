"""Compare an export with torch: each component, then whole pictures with diffusers' own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from export.cases import PROMPTS, Case, Cases
from export.compare import (
    Check,
    Comparison,
    Invariance,
    Picture,
    Tolerance,
    as_json,
    compare,
    psnr_db,
)
from export.int8 import QUANTIZED
from export.request import COMPONENTS
from export.runtimes import Array, Runtime, Session, runtimes
from export.sizes import Size

Arrays = dict[str, Array]

# float32 measures 1e-6 to 1e-5 and a wrong graph 1e-2 and more. An error of 1e-6 can tip a value
# that lies on the edge between two levels. int8's scales are those of pictures; pure noise at a low
# sigma, which no picture passes, is beyond them, so little is asked of outputs, more of pictures.
TOLERANCES = {
    "fp32": Tolerance(relative_rms=1e-4, levels=1, picture_db=60),
    "fp16": Tolerance(relative_rms=1e-2, levels=8, picture_db=35),
    "bf16": Tolerance(relative_rms=6e-2, levels=16, picture_db=25),
    "int8": Tolerance(relative_rms=0.3, levels=128, picture_db=25),
}


@dataclass(frozen=True)
class Verification:
    """All that was compared for one export, and the runtimes it was compared in."""

    runtimes: tuple[Runtime, ...]
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        """What forbids the export."""
        required = {runtime.name for runtime in self.runtimes if runtime.required}
        return [c for c in self.checks if not c.passed and c.runtime in required]

    @property
    def refused(self) -> dict[str, Check]:
        """The runtimes that serving shall not use, each with the first check it failed."""
        refused: dict[str, Check] = {}
        for check in self.checks:
            if not check.passed:
                refused.setdefault(check.runtime, check)
        return refused

    @property
    def served(self) -> list[str]:
        """The runtimes that serving may use: everything held in them."""
        return [r.name for r in self.runtimes if r.serves and r.name not in self.refused]

    def to_json(self) -> dict[str, Any]:
        """The ``verification`` entry of export.json; ``picture`` is the worst of those required."""
        entry: dict[str, Any] = {
            "runtimes": [runtime.name for runtime in self.runtimes],
            "components": [as_json(c) for c in self.checks if isinstance(c, Comparison)],
            "batch_invariance": [as_json(c) for c in self.checks if isinstance(c, Invariance)],
            "pictures": [as_json(c) for c in self.checks if isinstance(c, Picture)],
        }
        required = {runtime.name for runtime in self.runtimes if runtime.required}
        pictures = [each for each in entry["pictures"] if each["runtime"] in required]
        if pictures:
            entry["picture"] = min(pictures, key=lambda picture: picture["psnr_db"])
        return entry


def verify(
    cases: Cases,
    folder: Path,
    precision: str,
    components: tuple[str, ...] = COMPONENTS,
    more: tuple[Runtime, ...] = (),
) -> Verification:
    """Compare the graphs in ``folder`` with the student they were made from.

    One graph is loaded at a time. Whole pictures are drawn only with all components.

    Args:
        cases: of the student.
        folder: of the graphs.
        precision: of the graphs.
        components: those that are there.
        more: runtimes besides those that every machine has.
    """
    available = [*runtimes(precision), *more]
    checks: list[Check] = []
    drawn: dict[tuple[str, Size], Arrays] = {}
    for component in [each for each in COMPONENTS if each in components]:
        expected = list(cases.of(component))
        for runtime in available:
            session = runtime.open(folder / f"{component}.onnx")
            tolerance = _tolerance(runtime, _precision_of(component, precision))
            for case in expected:
                checks += _compared(case, runtime, session, tolerance)
                if runtime.serves and case.batch == cases.max_batch > 1:
                    checks.append(_invariance(case, runtime, session))
            if len(components) == len(COMPONENTS):
                for size in cases.sizes:
                    state = drawn.get((runtime.name, size), {})
                    drawn[runtime.name, size] = _draw(component, session, state, cases, size)
    for size in cases.sizes if drawn else ():
        picture = cases.picture(size)
        for runtime in available:
            found = psnr_db(drawn[runtime.name, size]["image"], picture)
            least = _tolerance(runtime, precision).picture_db
            checks.append(Picture(runtime.name, str(size), found, least))
    return Verification(tuple(available), tuple(checks))


def _precision_of(component: str, precision: str) -> str:
    """An int8 export's text encoder stays as it was."""
    return "fp32" if precision == "int8" and component not in QUANTIZED else precision


def _tolerance(runtime: Runtime, precision: str) -> Tolerance:
    """That of the coarser of the graph's type and the runtime's."""
    types = (precision, runtime.arithmetic or precision)
    return max((TOLERANCES[each] for each in types), key=lambda each: each.relative_rms)


def _compared(
    case: Case, runtime: Runtime, session: Session, tolerance: Tolerance
) -> list[Comparison]:
    """Every output against torch's."""
    actual = session.run(case.inputs)
    return [
        compare(actual[name], expected, tolerance, output=name, **_where(case, runtime))
        for name, expected in case.expected.items()
    ]


def _invariance(case: Case, runtime: Runtime, session: Session) -> Invariance:
    """Every sample of the batch against itself alone.

    If they differ, a neighbour in the batch changes somebody's picture.
    """
    together = session.run(case.inputs)
    identical = True
    for row in range(case.batch):
        alone = session.run({name: each[row : row + 1] for name, each in case.inputs.items()})
        identical &= all(np.array_equal(alone[n], together[n][row : row + 1]) for n in alone)
    return Invariance(identical=identical, **_where(case, runtime))


def _where(case: Case, runtime: Runtime) -> dict[str, Any]:
    return {
        "runtime": runtime.name,
        "component": case.component,
        "batch": case.batch,
        "size": case.size,
    }


def _draw(component: str, session: Session, state: Arrays, cases: Cases, size: Size) -> Arrays:
    """One component's part of a picture: prompt -> condition -> latents -> image."""
    if component == "text_encoder":
        outputs = session.run(cases.text([PROMPTS[0]]))
        return {name: outputs[name] for name in ("prompt_embeds", "pooled") if name in outputs}
    if component == "vae_decoder":
        return session.run(state)
    latents = cases.noise(size).numpy()
    for sigma, following in pairwise(np.asarray(cases.sigmas(size), dtype=np.float32)):
        inputs = {"latents": latents, "sigma": np.full(1, sigma), **state}
        latents = latents + (following - sigma) * session.run(inputs)["velocity"]
    return {"latents": latents}
