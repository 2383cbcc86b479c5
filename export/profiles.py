"""The shapes that a TensorRT engine is built for: one optimisation profile for each size."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from cdm_serve.engine.manifest import DECODERS
from export.plan import Plan
from export.request import EngineOptions, Size
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
    made: dict[str, list[Profile]] = {}
    for component in plan.components:
        made[component] = []
        sized = component != "text_encoder" or student.adapter.needs_picture
        for size in plan.sizes if sized else (None,):
            # Pictures that come in are encoded one by one.
            most = 1 if component == "vae_encoder" else plan.max_batch
            shapes = {
                name: ((1, *sample), (most, *sample), (most, *sample))
                for name, sample in _sample_shapes(component, student, size).items()
            }
            made[component].append(Profile(None if size is None else str(size), shapes))
    return made


def _sample_shapes(component: str, student: Student, size: Size | None) -> dict[str, Shape]:
    """The shape of one sample of every input."""
    if component == "text_encoder":
        tokens = student.architecture.text_inputs().items()
        texts: dict[str, Shape] = {name: tuple(each.shape[1:]) for name, each in tokens}
        if size is None:
            return texts
        width, height, _ = student.adapter.views(size.height, size.width)[-1]
        return texts | {"image": (height, width, 3)}
    assert size is not None
    latents = student.adapter.latent_shape(size.height, size.width)
    if component == "vae_encoder":
        return {"image": (size.height, size.width, 3)}
    if component in DECODERS.values():
        return {"latents": latents}
    condition = student.adapter.condition_shapes(size.height, size.width)
    return {"latents": latents, "sigma": (), **condition}


def show(made: dict[str, list[Profile]], options: EngineOptions, console: Console) -> None:
    """Print the profiles as a table, and the ``trtexec`` lines that build the same engines."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("engine", "profile", "input", "least", "most frequent", "largest"):
        table.add_column(column, no_wrap=True)
    for component, each in made.items():
        for i, profile in enumerate(each):
            label = f"{i}: {profile.size}" if profile.size else str(i)
            for name, shapes in profile.shapes.items():
                table.add_row(component, label, name, *map(_text, shapes))
    console.print(table)
    console.print("\nBuilt from the graphs by these commands:")
    for component, each in made.items():
        # Not through the console, which would break the lines.
        print(trtexec(component, each, options), file=console.file)


def trtexec(component: str, profiles: list[Profile], options: EngineOptions) -> str:
    """The ``trtexec`` command that builds the same engine from ``COMPONENT.onnx``."""
    words = ["trtexec", f"--onnx={component}.onnx", f"--saveEngine={component}.plan"]
    for i, profile in enumerate(profiles):
        if len(profiles) > 1:
            words.append(f"--profile={i}")
        for k, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            shapes = (f"{name}:{_text(each[k])}" for name, each in profile.shapes.items())
            words.append(f"{option}={','.join(shapes)}")
    words += ["--refit"] if options.refit else []
    words += ["--versionCompatible"] if options.version_compatible else []
    words += ["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []
    words += [f"--timingCacheFile={options.timing_cache}"] if options.timing_cache else []
    return " ".join([*words, "--skipInference"])


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
