"""Student folder in, model folder out: load, export, verify, stamp, put in place."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from rich.console import Console

from distill.adapters import Sd3Adapter
from distill.errors import DistillError
from export.errors import ExportError, VerificationError
from export.graphs import Graph, write_onnx
from export.manifest import manifest, write_manifest
from export.repository import staged
from export.sizes import Size
from export.student import Student, load_student
from export.table import verification_table
from export.text import text_encoder_graph
from export.tokenizers import write_tokenizers
from export.transformer import transformer_graph
from export.vae import vae_decoder_graph
from export.verify import verify

TRITON_FILES = Path(__file__).parent / "triton"
GRAPHS: dict[str, Callable[[Sd3Adapter], AbstractContextManager[Graph]]] = {
    "text_encoder": text_encoder_graph,
    "transformer": transformer_graph,
    "vae_decoder": vae_decoder_graph,
}


@dataclass(frozen=True)
class Request:
    """What to export and where to; ``None`` leaves the choice to the student."""

    student: Path
    repository: Path
    name: str | None = None
    sizes: tuple[Size, ...] | None = None


def export_onnx(request: Request, console: Console) -> Path:
    """Export, verify and put in place; returns the model folder.

    Raises:
        ExportError: the student, a size, the name or the repository is not usable.
        VerificationError: an output differs from torch's; whatever was in place stays.
    """
    with _stage(console, "load the student"):
        student = load_student(request.student)
    if not student.has_card:
        console.print(
            f"  no cdm.json in {student.folder}: taken as a student of {student.steps} steps "
            f"at {student.size} without guidance"
        )
    sizes = request.sizes or (student.size,)
    _check_sizes(student, sizes)
    name = student.name if request.name is None else request.name
    _check_name(name)
    with staged(request.repository, name) as folder:
        version = folder / "1"
        version.mkdir()
        _export_files(student, version, console)
        finish(student, name, sizes, folder, console)
    return request.repository / name


def finish(
    student: Student, name: str, sizes: tuple[Size, ...], folder: Path, console: Console
) -> None:
    """Verify the exported files in ``folder``, stamp them and add what Triton needs.

    Raises:
        VerificationError: an output differs from torch's beyond its tolerance.
    """
    version = folder / "1"
    with _stage(console, "compare with torch and diffusers"):
        verification = verify(student, version, sizes)
    console.print(verification_table(verification))
    if verification.failures:
        raise VerificationError(
            f"{len(verification.failures)} of the comparisons with torch failed, nothing was "
            f"replaced; the first: {verification.failures[0]}"
        )
    write_manifest(manifest(student, name, sizes, version, verification), version)
    shutil.copyfile(TRITON_FILES / "model.py", version / "model.py")
    shutil.copyfile(TRITON_FILES / "config.pbtxt", folder / "config.pbtxt")


def _export_files(student: Student, version: Path, console: Console) -> None:
    with _stage(console, "write and check the tokenizers"):
        write_tokenizers(student.adapter, version)
    for component, make_graph in GRAPHS.items():
        path = version / f"{component}.onnx"
        with _stage(console, f"export {component}"), make_graph(student.adapter) as graph:
            write_onnx(graph, path)


@contextmanager
def _stage(console: Console, title: str) -> Iterator[None]:
    """A spinner while it runs, then one line with the time it took."""
    start = perf_counter()
    with console.status(f"{title} ..."):
        yield
    console.print(f"[green]✓[/] {title} [dim]{perf_counter() - start:.1f} s[/]", highlight=False)


def _check_sizes(student: Student, sizes: tuple[Size, ...]) -> None:
    pipeline = student.adapter.pipeline
    most = pipeline.transformer.config.pos_embed_max_size * pipeline.patch_size
    limit = most * pipeline.vae_scale_factor
    for size in sizes:
        try:
            student.adapter.latent_shape(size.height, size.width)
        except DistillError as error:
            raise ExportError(str(error)) from error
        if max(size.width, size.height) > limit:
            raise ExportError(
                f"size {size}: this student's position embeddings end at {limit} pixels a side"
            )


def _check_name(name: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise ExportError(
            f"model name {name!r}: use letters, digits, '.', '_' and '-' only; choose one by --name"
        )
