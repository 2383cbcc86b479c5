"""``cdm-export doctor [STUDENT]``: what this machine has for an export, and what is missing."""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

from rich.console import Console

from cdm_serve.doctor import GIB, Finding, available, cpu, gpus, memory, package, show, tried
from cdm_serve.errors import StartError
from export.errors import ExportError
from export.layout import check_pipeline, check_student

_NEEDED = {"torch": "torch", "diffusers": "diffusers", "transformers": "transformers"}
_NEEDED |= {"ONNX": "onnx", "onnxscript": "onnxscript", "ONNX Runtime": "onnxruntime"}
_INSTALL = "'cdm-serve[export]'"


def main(argv: list[str]) -> int:
    """Print all findings; 0 where an export of the student would find what it needs, else 2."""
    parser = argparse.ArgumentParser(prog="cdm-export doctor", description=__doc__)
    parser.add_argument("student", type=Path, nargs="?", metavar="STUDENT")
    parser.add_argument("--out", type=Path, default=Path("model_repository"), metavar="DIR")
    options = parser.parse_args(argv)
    console = Console()
    with console.status("looking ..."):
        findings = list(examine(options.student, options.out))
    return show(findings, "export", console)


def examine(student: Path | None, out: Path) -> Iterator[Finding]:
    """Everything, one after the other; of a student that is a folder also what it takes."""
    yield Finding("CPU", cpu())
    yield Finding("memory", memory())
    yield from gpus()
    for what, name in _NEEDED.items():
        found = package(what, name, _INSTALL)
        yield replace(found, good=bool(found.good))
    yield package("TensorRT", "tensorrt", "'cdm-serve[tensorrt]' for --to tensorrt, on a GPU")
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    yield Finding("disk", f"{free / GIB:.1f} GiB free at {place}")
    if student is not None:
        yield tried("student", lambda: _student(student, free))


def _student(student: Path, free: int) -> str:
    """What an export in float32, compared in full, takes: as docs/export.md counts it."""
    try:
        check_student(student, False)
        if student.is_dir():
            check_pipeline(student)
    except ExportError as error:
        raise StartError(str(error)) from error
    if not student.is_dir():
        return f"{student} would be fetched from the hub; its size is not known here"
    networks = {path.name: _weights(path) for path in student.iterdir() if path.is_dir()}
    total, largest = sum(networks.values()), max(networks.values())
    need, least = 4 * total + 2 * largest, 4 * largest
    if least > available():
        raise StartError(f"its largest network takes {least / GIB:.1f} GiB: more memory is needed")
    if need > available():
        raise StartError(
            f"it takes {need / GIB:.1f} GiB of memory to be compared in full; add --verify quick, "
            f"--precision fp16 or bf16: about {least / GIB:.1f} GiB"
        )
    if 4 * total > free:
        raise StartError(f"its graphs take {4 * total / GIB:.1f} GiB of disk: choose another --out")
    return f"{total:,} weights, {need / GIB:.1f} GiB of memory, {4 * total / GIB:.1f} GiB of disk"


def _weights(folder: Path) -> int:
    """In a component's files, as their headers have it; of the variants that lie there the most."""
    counts: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        variant = path.name.partition("-000")[0].removesuffix(".safetensors")
        counts[variant] = counts.get(variant, 0) + sum(map(prod, shapes))
    return max(counts.values(), default=0)
