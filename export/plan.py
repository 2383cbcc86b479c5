"""What is exported, once the student is known."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cdm_serve.engine.manifest import COMPONENTS, OPTIONAL
from distill.errors import DistillError
from export.errors import ExportError
from export.precision import PRECISIONS, Precision
from export.request import Device, Level, Request, Size
from export.student import Student
from export.tokenizers import PipelineTokenizer


@dataclass(frozen=True)
class Plan:
    """A request with the student's own choices filled in.

    ``calibration`` are the prompts whose pictures set the scales of quantized graphs, ``device``
    is where torch computes what they are compared with.
    """

    name: str
    sizes: tuple[Size, ...]
    precision: Precision
    max_batch: int
    components: tuple[str, ...]
    calibration: tuple[str, ...] = ()
    level: Level = "full"
    device: Device = "cpu"

    @property
    def compared_sizes(self) -> tuple[Size, ...]:
        """All of them, or only the smallest."""
        smallest = min(self.sizes, key=lambda size: size.width * size.height)
        return self.sizes if self.level == "full" else (smallest,)

    @property
    def compared_batches(self) -> list[int]:
        """One and three samples and the largest batch, or only the smallest real batch."""
        batches = (1, 3, self.max_batch) if self.level == "full" else (2,)
        return sorted({min(batch, self.max_batch) for batch in batches})

    @property
    def whole(self) -> bool:
        """All components but optional ones, so that the export can be served."""
        return set(self.components) >= set(COMPONENTS)

    def tokenizers(self, student: Student) -> list[PipelineTokenizer]:
        """Those that go with what is exported: all of the student's, or none."""
        return student.architecture.tokenizers() if "text_encoder" in self.components else []


def plan(request: Request, student: Student, calibration: tuple[str, ...] = ()) -> Plan:
    """Check a request against its student.

    Raises:
        ExportError: a size or the name cannot be used.
    """
    sizes = request.sizes or (student.size,)
    limit = student.architecture.longest_side
    for size in sizes:
        try:
            student.adapter.latent_shape(size.height, size.width)
        except DistillError as error:
            raise ExportError(str(error)) from error
        if limit is not None and max(size.width, size.height) > limit:
            raise ExportError(
                f"size {size}: this student's position embeddings end at {limit} pixels a side"
            )
    if calibration and student.adapter.needs_picture:
        raise ExportError(
            "--precision int8: what edits pictures cannot be calibrated by prompts; choose bf16"
        )
    name = student.name if request.name is None else request.name
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise ExportError(
            f"model name {name!r}: use letters, digits, '.', '_' and '-' only; choose one by --name"
        )
    there = {"vae_encoder": student.adapter.encodes_pictures, "tiny_decoder": student.tiny}
    possible = (*COMPONENTS, *(each for each in OPTIONAL if there[each]))
    components = tuple(each for each in possible if each in request.components)
    half = next(each for each in PRECISIONS.values() if each.dtype == student.adapter.half)
    default = PRECISIONS["fp32"] if request.tensorrt is None else half
    precision = default if request.precision is None else PRECISIONS[request.precision]
    return Plan(
        name,
        sizes,
        precision,
        request.max_batch,
        components,
        calibration,
        request.level,
        request.device,
    )
