"""Tiny students as ``cdm-distill`` would describe them, and their verification by hand."""

import json
from pathlib import Path
from typing import Any

from cdm_serve.engine.manifest import COMPONENTS, OPTIONAL, parse_manifest
from export.manifest import manifest
from export.plan import Plan
from export.precision import PRECISIONS
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
# 72x56 has 9 x 7 patches, where position embeddings' crop is easily one row off.
SIZES = (Size(64, 64), Size(72, 56))


def write_card(folder: Path, **changes: Any) -> Path:
    (folder / "cdm.json").write_text(json.dumps(CARD | changes), encoding="utf-8")
    return folder


def plan_of(
    precision: str = "fp32",
    components: tuple[str, ...] = (*COMPONENTS, *OPTIONAL),
    sizes: tuple[Size, ...] = SIZES,
    max_batch: int = 4,
) -> Plan:
    return Plan("tiny", sizes, PRECISIONS[precision], max_batch, components)


def verified(
    student: Student, folder: Path, plan: Plan, more: tuple[Candidate, ...] = ()
) -> Verification:
    """The files in ``folder`` compared with a student, whatever export.json lies beside them."""
    contents = manifest(student, plan, folder)
    return verify(student, plan, parse_manifest(contents, folder), more)
