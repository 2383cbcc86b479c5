"""Student folder in, model folder out: load, export, verify, stamp, put in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import Progress

from cdm_serve.engine.manifest import parse_manifest
from cdm_serve.engine.runtimes.tensorrt import TensorRt
from export.compare import verification_table
from export.errors import VerificationError
from export.graphs import graph, write_onnx
from export.int8 import (
    QUANTIZED,
    calibrate,
    calibration_prompts,
    check_size,
    load_nncf,
    quantize,
)
from export.manifest import manifest, write_manifest
from export.memory import give_back
from export.plan import Plan, plan
from export.precision import PRECISIONS
from export.profiles import Profile, profiles, show
from export.reference import Reference, check_device, reference
from export.repository import check_name, share_files, staged
from export.request import EngineOptions, Request
from export.student import Student, load_student
from export.tensorrt import build_engine, check_available, stamp
from export.tokenizers import write_tokenizers
from export.triton_files import write_triton_files
from export.verify import Candidate, verify
from export.weights import NARROWED


def export(request: Request, console: Console) -> Path:
    """Export, verify and put in place; returns the model folder.

    Raises:
        ExportError: the student, a size, the name, the repository or the GPU is not usable.
        VerificationError: an output differs from torch's; whatever was in place stays.
    """
    options = request.tensorrt
    gpu = None if options is None else check_available()  # before any work
    check_device(request.device)
    student, made = _load_plan(request, console)
    check_name(request.repository, made.name, request.variant_of)
    with staged(request.place, made.name, whole=made.whole) as folder:
        version = folder / "1"
        version.mkdir()
        _export_files(student, made, version, console)
        engines = None
        if options is not None and gpu is not None:
            shapes = profiles(student, made)
            _build_engines(version, shapes, options, console)
            engines = stamp(version, shapes, options, gpu)
        contents = manifest(student, made, version, engines)
        compared = stage(console, "compute with torch what the graphs are compared with")
        with nullcontext() if made.level == "none" else compared:
            expected = reference(student, made)
        del student  # before the graphs are loaded: only one of them is in memory
        give_back()
        finish(expected, contents, made, folder, console)
        if shared := share_files(version, request.repository):
            console.print(f"  one file with another model: {', '.join(shared)}", highlight=False)
    return request.place / made.name


def dry_run(request: Request, console: Console) -> None:
    """Show the engines that would be built, and how trtexec would build them; nothing is written.

    Raises:
        ExportError: the student, a size or the name is not usable.
    """
    student, made = _load_plan(request, console)
    show(profiles(student, made), request.tensorrt or EngineOptions(), console)


def finish(
    expected: Reference, contents: dict[str, Any], plan: Plan, folder: Path, console: Console
) -> None:
    """Verify the exported files in ``folder``, stamp them and add what Triton needs.

    Raises:
        VerificationError: an output differs from torch's beyond its tolerance.
    """
    version, engines = folder / "1", "tensorrt" in contents
    # TensorRT multiplies float32 as TF32, which has float16's digits.
    more = (Candidate("tensorrt", TensorRt(), "fp16", serves=True),) if engines else ()
    left_out = "leave the comparison out: export.json and the server say so"
    with stage(console, left_out if plan.level == "none" else "compare with torch and diffusers"):
        verification = verify(expected, plan, parse_manifest(contents, version), more)
    if verification.checks:
        console.print(verification_table(verification.checks))
    if verification.failures:
        raise VerificationError(
            f"{len(verification.failures)} of the comparisons with torch failed, nothing was "
            f"replaced; the first: {verification.failures[0]}"
        )
    for each in verification.smaller:
        console.print(f"  {each}", highlight=False)
    if verification.tiny_psnr_db is not None:
        found = f"{verification.tiny_psnr_db:.1f} dB from the full decoder's"
        console.print(f"  pictures of the tiny decoder are {found}", highlight=False)
    for runtime, check in verification.refused.items():
        console.print(f"  {runtime} will not be used for serving: {check}", highlight=False)
    contents |= {
        "runtimes": verification.served,
        "verification": {"level": plan.level, **verification.to_json()},
    }
    write_manifest(contents, version)
    if plan.whole:
        write_triton_files(folder, plan.max_batch, engines=engines)
    else:
        console.print("  not all components: nothing that Triton could load")


def _load_plan(request: Request, console: Console) -> tuple[Student, Plan]:
    """The student, and what of it is exported."""
    prompts: tuple[str, ...] = ()
    if request.calibration is not None:
        load_nncf()
        prompts = calibration_prompts(request.calibration)
    with stage(console, "load the student"):
        student = load_student(
            request.student,
            request.sampling,
            request.base,
            request.loras,
            _dtype(request),
            request.decoder,
        )
    console.print(f"  {student.contract}", highlight=False)
    for name, keys in student.unread.items():
        unread = f"{', '.join(keys)}: unknown to diffusers {diffusers.__version__}, and not read"
        console.print(f"  {name}: its configuration has {unread}", highlight=False)
    if prompts:
        check_size(student)
    return student, plan(request, student, prompts)


def _dtype(request: Request) -> torch.dtype:
    """What weights are loaded in: a full comparison is with the student as it is, in float32."""
    if request.level == "full" or request.precision is None:
        return torch.float32
    return PRECISIONS[request.precision].dtype


def _export_files(student: Student, plan: Plan, version: Path, console: Console) -> None:
    with stage(console, "write and check the tokenizers"):
        write_tokenizers(plan.tokenizers(student), version)
    for component in plan.components:
        with stage(console, f"export {component}"):
            tiny = student.tiny if component == "tiny_decoder" else None
            made = graph(component, student.architecture, plan.precision, tiny)
            bits = plan.precision.bits if component in NARROWED else None
            write_onnx(made, version / f"{component}.onnx", bits=bits)
        del made
        give_back()  # a traced module and its weights in another precision hang in cycles
    if not plan.calibration:
        return
    with stage(console, f"draw {len(plan.calibration)} pictures to calibrate with"):
        rows = calibrate(student, plan.calibration, plan.sizes)
    for component in (each for each in QUANTIZED if each in plan.components):
        with stage(console, f"quantize {component}"):
            quantize(version / f"{component}.onnx", component, rows[component])


def _build_engines(
    version: Path, shapes: dict[str, list[Profile]], options: EngineOptions, console: Console
) -> None:
    for component, each in shapes.items():
        onnx, engine = version / f"{component}.onnx", version / f"{component}.plan"
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"build {component}")

            def report(
                phase: str, done: int, steps: int, progress: Progress = progress, task: Any = task
            ) -> None:
                progress.update(task, description=phase, completed=done, total=steps)

            build_engine(onnx, engine, each, options, report)
        console.print(f"[green]✓[/] build {component}", highlight=False)


@contextmanager
def stage(console: Console, title: str) -> Iterator[None]:
    """A spinner while it runs, then one line with the time it took."""
    start = perf_counter()
    with console.status(f"{title} ..."):
        yield
    console.print(f"[green]✓[/] {title} [dim]{perf_counter() - start:.1f} s[/]", highlight=False)
