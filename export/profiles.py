"""The shapes that a TensorRT engine is built for: one optimisation profile for each size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.plan import Plan
    from export.sizes import Size
    from export.student import Student

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The least, the most frequent and the largest shape of every input of a graph.

    Batches reach from one sample to the export's most, for which the kernels are chosen: under
    load batches are full, and without load nobody waits.
    """

    size: str | None
    shapes: dict[str, tuple[Shape, Shape, Shape]]


def profiles(student: Student, plan: Plan) -> dict[str, list[Profile]]:
    """The profiles of each component, in the order of ``plan.sizes``."""
    return {component: _of(component, student, plan) for component in plan.components}


def _of(component: str, student: Student, plan: Plan) -> list[Profile]:
    sizes = plan.sizes if component != "text_encoder" else (None,)
    made = []
    for size in sizes:
        samples = _sample_shapes(component, student, size)
        batches = (1, plan.max_batch, plan.max_batch)
        shapes = {
            name: ((batches[0], *sample), (batches[1], *sample), (batches[2], *sample))
            for name, sample in samples.items()
        }
        made.append(Profile(None if size is None else str(size), shapes))
    return made


def _sample_shapes(component: str, student: Student, size: Size | None) -> dict[str, Shape]:
    """The shape of one sample of every input."""
    architecture = student.architecture
    if size is None:
        return {name: tuple(each.shape[1:]) for name, each in architecture.text_inputs().items()}
    latents = student.adapter.latent_shape(size.height, size.width)
    if component == "vae_decoder":
        return {"latents": latents}
    shapes = {name: tuple(t.shape[1:]) for name, t in architecture.transformer_inputs().items()}
    condition = student.adapter.empty_condition(1).tensors
    return shapes | {"latents": latents, **{n: tuple(t.shape[1:]) for n, t in condition.items()}}


def trtexec(component: str, profiles: list[Profile], options: list[str]) -> str:
    """The ``trtexec`` command that builds the same engine from ``COMPONENT.onnx``."""
    words = ["trtexec", f"--onnx={component}.onnx", f"--saveEngine={component}.plan"]
    for i, profile in enumerate(profiles):
        if len(profiles) > 1:
            words.append(f"--profile={i}")
        for k, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            shapes = (f"{name}:{_text(each[k])}" for name, each in profile.shapes.items())
            words.append(f"{option}={','.join(shapes)}")
    return " ".join([*words, *options, "--skipInference"])


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
