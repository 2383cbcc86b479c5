"""Tiny students as ``cdm-distill`` would describe them, and their verification by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import (
    tiny_flux,
    tiny_klein,
    tiny_longcat,
    tiny_longcat_edit,
    tiny_qwen_image,
    tiny_sd3,
    tiny_z_image,
)

from cdm_serve.engine.manifest import COMPONENTS, parse_manifest
from export.manifest import manifest
from export.plan import Plan
from export.precision import PRECISIONS
from export.reference import reference
from export.request import Size
from export.student import Student
from export.verify import Candidate, Verification, verify

CARD: dict[str, Any] = {
    "format": 1,
    "name": "tiny",
    "architecture": "sd3",
    "steps": 4,
    "sigmas": [1.0, 0.75, 0.5, 0.25],
    "guidance_scale": 1.0,
    "max_sequence_length": 16,
    "height": 64,
    "width": 64,
}
# Of every other architecture what makes a tiny pipeline, and what the student's card says.
FAMILIES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "sd3.5": (lambda folder: tiny_sd3(folder, t5=True, dual_attention=True), {}),
    "longcat": (tiny_longcat, {"architecture": "longcat", "max_sequence_length": 512}),
    "longcat-edit": (
        tiny_longcat_edit,
        {"architecture": "longcat-edit", "max_sequence_length": 512},
    ),
    "flux": (tiny_flux, {"architecture": "flux"}),
    "flux-dev": (
        lambda folder: tiny_flux(folder, guidance=True),
        {"architecture": "flux", "guidance_scale": 3.5},
    ),
    "klein": (tiny_klein, {"architecture": "flux2-klein", "max_sequence_length": 60}),
    "qwen-image": (tiny_qwen_image, {"architecture": "qwen-image", "max_sequence_length": 350}),
    "z-image": (
        tiny_z_image,
        {"architecture": "z-image", "guidance_scale": 0.0, "max_sequence_length": 96},
    ),
}
# 72x56 has 9 x 7 patches, where position embeddings' crop is easily one row off.
SIZES = (Size(64, 64), Size(72, 56))


def write_card(folder: Path, **changes: Any) -> Path:
    (folder / "cdm.json").write_text(json.dumps(CARD | changes), encoding="utf-8")
    return folder


def family(name: str, folder: Path) -> Path:
    """A student of one of ``FAMILIES``."""
    make, card = FAMILIES[name]
    return write_card(make(folder), name=name, **card)


def plan_of(
    precision: str = "fp32",
    components: tuple[str, ...] = (*COMPONENTS, "vae_encoder"),
    sizes: tuple[Size, ...] = SIZES,
    max_batch: int = 4,
) -> Plan:
    return Plan("tiny", sizes, PRECISIONS[precision], max_batch, components)


def verified(
    student: Student, folder: Path, plan: Plan, more: tuple[Candidate, ...] = ()
) -> Verification:
    """The files in ``folder`` compared with a student, whatever export.json lies beside them."""
    contents = manifest(student, plan, folder)
    return verify(reference(student, plan), plan, parse_manifest(contents, folder), more)
