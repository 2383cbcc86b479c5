"""Compare an export with torch: each component, then whole pictures with diffusers' own.

The export is run by the code that will serve it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from cdm_serve.engine.manifest import COMPONENTS, DECODERS, PICTURE, Manifest
from cdm_serve.engine.memory import Growth
from cdm_serve.engine.pipeline import Condition, Pipeline
from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from cdm_serve.engine.runtimes.openvino import OpenVino
from cdm_serve.engine.runtimes.runtime import Runtime
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
from export.memory import trim
from export.plan import Plan
from export.precision import PRECISIONS
from export.reference import PROMPTS, SEED, Case, Edited, Reference
from export.request import Size
from export.weights import NARROWED

Array = NDArray[Any]

# float32 measures 1e-6 to 1e-5 and a wrong graph 1e-2 and more. An error of 1e-6 can tip a value
# that lies on the edge between two levels. int8's scales are those of pictures; pure noise at a low
# sigma, which no picture passes, is beyond them, so little is asked of outputs, more of pictures.
TOLERANCES = {
    "fp32": Tolerance(relative_rms=1e-4, levels=1, picture_db=60),
    "fp16": Tolerance(relative_rms=1e-2, levels=8, picture_db=35),
    "bf16": Tolerance(relative_rms=6e-2, levels=16, picture_db=25),
    "int8": Tolerance(relative_rms=0.3, levels=128, picture_db=25),
    "int8-weights": Tolerance(relative_rms=0.1, levels=16, picture_db=25),
    "int4-weights": Tolerance(relative_rms=0.3, levels=16, picture_db=20),
}


@dataclass(frozen=True)
class Candidate:
    """A runtime that an export is compared in.

    Attributes:
        name: the package and, where it is not the graph's own, the arithmetic: ``openvino-bf16``.
        arithmetic: a type it computes in that may be coarser than the graph's own.
        serves: whether serving may use it, which on a CPU asks for the same bits in every batch.
        required: whether the export fails with it; what is not is only left out of serving.
    """

    name: str
    runtime: Runtime
    arithmetic: str | None = None
    serves: bool = False
    required: bool = True


@dataclass(frozen=True)
class Verification:
    """All that was compared for one export, and the runtimes it was compared in.

    ``tiny_psnr_db`` is the least of a tiny decoder's pictures from the full one's. Nothing is asked
    of it: it is how good that decoder is, and not how well it was exported. ``smaller`` says of
    batches for which memory was not there which were compared in their place.
    """

    candidates: tuple[Candidate, ...]
    checks: tuple[Check, ...]
    tiny_psnr_db: float | None = None
    smaller: tuple[str, ...] = ()

    @property
    def failures(self) -> list[Check]:
        """What forbids the export."""
        required = {each.name for each in self.candidates if each.required}
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
        return [c.name for c in self.candidates if c.serves and c.name not in self.refused]

    def to_json(self) -> dict[str, Any]:
        """The ``verification`` entry of export.json; ``picture`` is the worst of those required."""
        entry: dict[str, Any] = {
            "runtimes": [each.name for each in self.candidates],
            "components": [as_json(c) for c in self.checks if isinstance(c, Comparison)],
            "batch_invariance": [as_json(c) for c in self.checks if isinstance(c, Invariance)],
            "pictures": [as_json(c) for c in self.checks if isinstance(c, Picture)],
        }
        required = {each.name for each in self.candidates if each.required}
        pictures = [each for each in entry["pictures"] if each["runtime"] in required]
        if self.tiny_psnr_db is not None:
            entry["tiny_psnr_db"] = self.tiny_psnr_db
        if pictures:
            entry["picture"] = min(pictures, key=lambda picture: picture["psnr_db"])
        return entry


def candidates(precision: str) -> list[Candidate]:
    """Those of this machine that can run graphs of a precision.

    ONNX Runtime has no bfloat16 convolution on the CPU. For float16 it has few kernels there: the
    others compute in float32 between float16 values. OpenVINO converts the weights and computes in
    float32 or, on a processor with such instructions, in bfloat16, whatever the graph's types.
    """
    found = []
    if PRECISIONS[precision].dtype != torch.bfloat16:
        found.append(Candidate("onnxruntime", OnnxRuntime("cpu")))
    found.append(Candidate("openvino-f32", OpenVino("f32"), serves=True))
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found.append(Candidate("openvino-bf16", OpenVino("bf16"), "bf16", True, required=False))
    return found


def verify(
    expected: Reference, plan: Plan, manifest: Manifest, more: tuple[Candidate, ...] = ()
) -> Verification:
    """Compare exported graphs with torch. One graph is loaded at a time.

    Args:
        expected: of the student they were made from.
        plan: of the export.
        manifest: of the files as they lie there.
        more: runtimes besides those that every machine has.
    """
    available = [*candidates(plan.precision.name), *more]
    if plan.level != "full":
        available = [each for each in available if each.serves]
    if plan.level == "none":  # what fails seldom is served unseen
        return Verification(tuple(each for each in available if each.required), ())
    checks: list[Check] = []
    drawn: dict[tuple[str, Size], Any] = {}
    latents: dict[tuple[str, Size], Any] = {}
    tiny: list[float] = []
    smaller: list[str] = []
    for component, compared in expected.cases.items():
        tokenizers = manifest.tokenizers if component == "text_encoder" else ()
        graph = {component: manifest.components[component]}
        part = replace(manifest, components=graph, tokenizers=tokenizers)
        for candidate in available:
            pipeline = Pipeline(part, candidate.runtime)
            tolerance = _tolerance(candidate, _precision_of(component, plan))
            growths: dict[str | None, Growth] = defaultdict(Growth)
            for whole in compared:
                growth = growths[whole.size]
                case, lacking = _fitting(whole, growth)
                # On a GPU rows differ a little by their company; its warm-up says how much.
                exact = candidate.serves and candidate.runtime.batches == "exact"
                where: dict[str, Any] = {"runtime": candidate.name, "component": component}
                where |= {"batch": case.batch, "size": case.size}
                if lacking:
                    at = f" at {case.size}" if case.size else ""
                    smaller.append(
                        f"{component}{at} in {candidate.name} is compared in batches of up to "
                        f"{case.batch}: of {whole.batch}, {lacking}"
                    )
                with growth.watch(case.batch):
                    found = _run(pipeline, component, case.rows)
                checks += [
                    compare(found[name], array, tolerance, output=name, **where)
                    for name, array in case.expected.items()
                ]
                if exact and whole.batch == plan.compared_batches[-1] > 1:
                    identical = _as_alone(pipeline, component, case.rows, found)
                    checks.append(Invariance(identical=identical, **where))
            for size in expected.pictures if component in COMPONENTS else ():
                key = (candidate.name, size)
                edited = expected.edited.get(size)
                drawn[key] = _draw(pipeline, component, str(size), drawn.get(key), edited)
                if component == "transformer":
                    latents[key] = drawn[key]
            for size in expected.pictures if component == "tiny_decoder" else ():
                key = (candidate.name, size)
                tiny.append(psnr_db(pipeline.decode(latents[key], "tiny"), drawn[key]))
            del pipeline  # before the next graph is loaded
            trim()
    for size, picture in expected.pictures.items():
        for candidate in available:
            found_db = psnr_db(drawn[candidate.name, size], picture)
            least = _tolerance(candidate, plan.precision.name).picture_db
            checks.append(Picture(candidate.name, str(size), found_db, least))
    return Verification(tuple(available), tuple(checks), min(tiny, default=None), tuple(smaller))


def _fitting(case: Case, growth: Growth) -> tuple[Case, str | None]:
    """As many of its rows as there is memory for, and what is said if these are not all.

    Nothing is lost by it but the comparison: the server tries its own batches when it starts.
    """
    batch, lacking = case.batch, growth.lacks(case.batch)
    while growth.lacks(batch):
        batch //= 2
    return case.first(batch), lacking


def _run(pipeline: Pipeline, component: str, rows: dict[str, Any]) -> dict[str, Array]:
    """A component's outputs by name."""
    if component == "text_encoder":
        conditions = pipeline.encode(rows["prompts"], rows.get("image"))
        names = conditions[0].embeds
        stacked = {name: pipeline.stack([c.embeds[name] for c in conditions]) for name in names}
        return {name: pipeline.to_host(array) for name, array in stacked.items()}
    if component == "vae_encoder":
        return {"latents": pipeline.to_host(pipeline.encode_picture(rows["image"][0])[None])}
    latents = pipeline.to_device(rows["latents"])
    for decoder, its_component in DECODERS.items():
        if component == its_component:
            return {"image": pipeline.decode(latents, decoder)}
    tensors = {n: pipeline.to_device(each) for n, each in rows.items() if n not in _OWN}
    conditions = [
        Condition({name: array[row] for name, array in tensors.items()}, tokens=0)
        for row in range(len(latents))
    ]
    return {"velocity": pipeline.to_host(pipeline.velocity(latents, rows["sigma"], conditions))}


_OWN = ("latents", "sigma")  # inputs of the transformer that are no condition


def _as_alone(
    pipeline: Pipeline, component: str, rows: dict[str, Any], together: dict[str, Array]
) -> bool:
    """Whether every sample of the batch has the bits that it has alone.

    If not, a neighbour in the batch changes somebody's picture.
    """
    for i in range(len(next(iter(together.values())))):
        alone = _run(pipeline, component, {name: each[i : i + 1] for name, each in rows.items()})
        if not all(np.array_equal(alone[name][0], array[i]) for name, array in together.items()):
            return False
    return True


def _draw(pipeline: Pipeline, component: str, size: str, state: Any, edited: Edited | None) -> Any:
    """One component's part of a picture: prompt -> condition -> latents -> image.

    What is ``edited`` has torch's latents: the encoder is compared by itself.
    """
    manifest = pipeline.manifest
    if component == "text_encoder":
        if edited is None:
            return pipeline.encode([PROMPTS[0]])
        (condition,) = pipeline.encode([PROMPTS[0]], edited.image)
        embeds = condition.embeds | {PICTURE: pipeline.to_device(edited.latents[0])}
        return [replace(condition, embeds=embeds)]
    if component == "vae_decoder":
        return pipeline.decode(state)
    sigmas = np.array(manifest.sigmas[size][manifest.default_steps], dtype=np.float32)
    return pipeline.denoise(pipeline.stack([pipeline.noise(SEED, size)]), sigmas, state)


def _precision_of(component: str, plan: Plan) -> str:
    """What is not quantized in an export in integers stays as it was."""
    precision = plan.precision.name
    if precision == "int8" and component not in QUANTIZED:
        return "fp32"
    return "bf16" if plan.precision.bits and component not in NARROWED else precision


def _tolerance(candidate: Candidate, precision: str) -> Tolerance:
    """That of the coarser of the graph's type and the runtime's."""
    types = (precision, candidate.arithmetic or precision)
    return max((TOLERANCES[each] for each in types), key=lambda each: each.relative_rms)
