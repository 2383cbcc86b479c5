"""``cdm-export doctor [STUDENT]``: what this machine has for an export, and what is missing."""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cdm_serve.doctor import Finding, cpu, gpus, memory, package, show, tried
from cdm_serve.engine.memory import GIB, available
from cdm_serve.errors import StartError
from export.errors import ExportError
from export.layout import check_pipeline, check_student
from export.memory import need
from export.request import parse_path

_NEEDED = {"torch": "torch", "diffusers": "diffusers", "transformers": "transformers"}
_NEEDED |= {"ONNX": "onnx", "onnxscript": "onnxscript", "ONNX Runtime": "onnxruntime"}
_INSTALL = "'cdm-serve[export]'"


def main(argv: list[str]) -> int:
    """Print all findings; 0 where an export of the student would find what it needs, else 2."""
    parser = argparse.ArgumentParser(prog="cdm-export doctor", description=__doc__)
    parser.add_argument("student", type=parse_path, nargs="?", metavar="STUDENT")
    parser.add_argument("--base", type=parse_path, metavar="PIPELINE")
    parser.add_argument("--out", type=parse_path, default=Path("model_repository"), metavar="DIR")
    parser.add_argument("--to", choices=("onnx", "tensorrt"), default="onnx")
    options = parser.parse_args(argv)
    console = Console()
    with console.status("looking ..."):
        findings = list(examine(options.student, options.out, options.base, options.to))
    return show(findings, "export", console)


def examine(
    student: Path | None, out: Path, base: Path | None = None, to: str = "onnx"
) -> Iterator[Finding]:
    """Everything, one after the other; of a student that is a folder also what it takes."""
    yield Finding("CPU", cpu())
    yield Finding("memory", memory())
    engines = to == "tensorrt"
    yield from (_needed(each) if engines else each for each in gpus())
    for what, name in _NEEDED.items():
        yield _needed(package(what, name, _INSTALL))
    tensorrt = package("TensorRT", "tensorrt", "'cdm-serve[tensorrt]' for --to tensorrt, on a GPU")
    yield _needed(tensorrt) if engines else tensorrt
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    yield Finding("disk", f"{free / GIB:.1f} GiB free at {place}")
    if student is not None:
        yield tried("student", lambda: _student(student, base, free))


def _needed(found: Finding) -> Finding:
    return replace(found, good=bool(found.good))


def _student(student: Path, base: Path | None, free: int) -> str:
    """What an export in float32, compared in full, takes: as docs/export.md counts it.

    What is put into a ``base`` is as large as what it replaces.
    """
    try:
        check_student(student, base is not None)
        student = base or student
        if student.is_dir():
            check_pipeline(student)
    except ExportError as error:
        raise StartError(str(error)) from error
    if not student.is_dir():
        return f"{student} would be fetched from the hub; its size is not known here"
    takes = need(student)
    if takes.quick > available():
        raise StartError(
            f"its largest network takes {takes.quick / GIB:.1f} GiB: more memory is needed"
        )
    if takes.full > available():
        raise StartError(
            f"it takes {takes.full / GIB:.1f} GiB of memory to be compared in full; add --verify "
            f"quick, --precision fp16 or bf16: about {takes.quick / GIB:.1f} GiB"
        )
    disk = 4 * takes.weights
    if disk > free:
        raise StartError(f"its graphs take {disk / GIB:.1f} GiB of disk: choose another --out")
    return (
        f"{takes.weights:,} weights, {takes.full / GIB:.1f} GiB of memory, {disk / GIB:.1f} GiB of "
        "disk"
    )
