"""What an export's precision costs in pictures: PSNR against diffusers, and the judge's verdict.

First export the emoji student in every precision, then measure::

    cdm-export models/emoji-student --to onnx --out runs/precision --precision fp16 --name fp16
    python -m benchmarks.export_precision runs/precision --out result.json

The same held-out captions are drawn from the same noise by diffusers in float32 and by the serving
engine in each runtime that the exports may be served in; the judge looks at all of them. fp16 is
drawn by ONNX Runtime too, on the CPU as OpenVINO, but with float16 between the operators.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.engine_pictures import draw
from benchmarks.errors import BenchError
from benchmarks.record import write_result
from cdm_serve.engine.job import Pixels
from cdm_serve.engine.manifest import read_manifest
from cdm_serve.engine.onnx_runtime import OnnxRuntime
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtime import Runtime, open_runtime
from cdm_serve.errors import StartError
from distill.emoji.compose import Composition
from distill.emoji.judge import JudgeNetwork, load_judge
from distill.emoji.verdict import QUESTIONS, held_out, look, rate, right
from distill.emoji.vocabulary import SUBJECTS
from distill.errors import DistillError
from export.cases import quiet
from export.compare import psnr_db
from export.errors import ExportError
from export.exporter import stage
from export.student import Student, load_student

BATCH = 16
# The share of pictures that have all the subjects asked for may move by this much.
ALLOWED = 0.01


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; 1: a precision costs more than ``ALLOWED``, 2: a user's error."""
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        judge, student = load_judge(arguments.judge), load_student(arguments.student)
        exports = _exports(arguments.repository, student)
        result = measure(
            student, exports, judge, held_out(arguments.prompts, arguments.subjects), console
        )
        console.print(_table(result))
        if arguments.out is not None:
            write_result(arguments.out, result, ["onnx", "onnxscript"])
    except (BenchError, DistillError, ExportError, StartError) as error:
        print(f"export_precision: {error}", file=sys.stderr)
        return 2
    return 0 if all(each["within"] for each in result["exports"]) else 1


def measure(
    student: Student,
    exports: Sequence[Path],
    judge: JudgeNetwork,
    compositions: Sequence[Composition],
    console: Console,
) -> dict[str, Any]:
    """The verdicts on diffusers' pictures and on those of every export in every runtime.

    Args:
        student: that the exports are of.
        exports: version folders.
        judge: who looks.
        compositions: what the pictures shall show.
        console: for progress.

    Raises:
        StartError: an export's files are not those that were written.
    """
    captions = [each.caption for each in compositions]
    with stage(console, "draw by diffusers in float32"):
        reference = _diffusers(student, captions)
    asked = _verdict(judge, reference, compositions)
    measured = []
    for version in exports:
        for name, runtime, precision in _runtimes(version):
            with stage(console, f"draw by {name} from {precision}"):
                pictures = draw(Pipeline(read_manifest(version), runtime), captions, BATCH)
            found = _verdict(judge, pictures, compositions)
            compared = _compared(pictures, reference, found, asked)
            measured.append({"precision": precision, "runtime": name, **compared})
    return {
        "student": student.name,
        "sha256": student.sha256,
        "pictures": len(captions),
        "steps": student.steps,
        "allowed_change": ALLOWED,
        "diffusers": _accuracy(asked),
        "exports": measured,
    }


def _exports(repository: Path, student: Student) -> list[Path]:
    """The version folders of a model repository, all of one student."""
    found = sorted(path.parent for path in repository.glob("*/1/export.json"))
    if not found:
        raise BenchError(f"{repository} holds no export; make some with cdm-export")
    for version in found:
        contents = json.loads((version / "export.json").read_text(encoding="utf-8"))
        if contents["student"]["sha256"] != student.sha256:
            raise BenchError(f"{version.parent} is not of {student.folder}; export it again")
    return found


def _runtimes(version: Path) -> Iterator[tuple[str, Runtime, str]]:
    """Those that an export may be served in, as export.json names them, and its precision."""
    contents = json.loads((version / "export.json").read_text(encoding="utf-8"))
    precision = contents["precision"]
    for name in contents["runtimes"]:
        package, _, arithmetic = name.partition("-")
        yield name, open_runtime(package, arithmetic), precision
    if precision == "fp16":
        yield "onnxruntime-cpu", OnnxRuntime("cpu"), precision


def _diffusers(student: Student, captions: Sequence[str]) -> Pixels:
    """The pipeline's own pictures in float32; picture i starts from seed i."""
    drawn = []
    with quiet(student.adapter):
        for first in range(0, len(captions), BATCH):
            batch = list(captions[first : first + BATCH])
            seeds = range(first, first + len(batch))
            pictures = student.adapter.pipeline(
                batch,
                num_inference_steps=student.steps,
                sigmas=[1 - step / student.steps for step in range(student.steps)],
                guidance_scale=1.0,
                max_sequence_length=0,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=student.size.height,
                width=student.size.width,
            ).images
            drawn += [np.asarray(picture) for picture in pictures]
    return np.stack(drawn)


def _verdict(
    judge: JudgeNetwork, pictures: Pixels, compositions: Sequence[Composition]
) -> dict[str, Tensor]:
    """What is right in each picture; ``subjects``: the one or both that were asked for."""
    unit = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    verdict = right(look(judge, unit)[1], compositions)
    return verdict | {"subjects": torch.maximum(verdict["subject"], verdict["pair"])}


def _accuracy(verdict: dict[str, Tensor]) -> dict[str, Any]:
    return {name: rate(verdict[name]) for name in ("subjects", *QUESTIONS)}


def _compared(
    pictures: Pixels, reference: Pixels, found: dict[str, Tensor], asked: dict[str, Tensor]
) -> dict[str, Any]:
    """Figures of one export in one runtime against diffusers'."""
    each = [psnr_db(a, b) for a, b in zip(pictures, reference, strict=True)]
    change = float((found["subjects"] - asked["subjects"]).float().mean())
    return {
        "psnr_db": psnr_db(pictures, reference),
        "worst_picture_psnr_db": min(each),
        "accuracy": _accuracy(found),
        "subjects_change": change,
        "verdicts_changed": int((found["subjects"] != asked["subjects"]).sum()),
        "within": abs(change) <= ALLOWED,
    }


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['student']}, {result['pictures']} pictures"
    table = Table("", "PSNR dB", "worst", "subjects right", "change", title=title)
    table.add_row("diffusers fp32", "", "", f"{result['diffusers']['subjects']['rate']:.1%}", "")
    for each in result["exports"]:
        table.add_row(
            f"{each['precision']} in {each['runtime']}",
            f"{each['psnr_db']:.1f}",
            f"{each['worst_picture_psnr_db']:.1f}",
            f"{each['accuracy']['subjects']['rate']:.1%}",
            f"{each['subjects_change']:+.2%}{'' if each['within'] else ' beyond'}",
        )
    return table


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.export_precision", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("repository", type=Path, help="with the exports, of any names")
    parser.add_argument("--student", type=Path, default=Path("models/emoji-student"))
    parser.add_argument("--judge", type=Path, default=Path("models/emoji-judge"))
    parser.add_argument(
        "--subjects",
        type=_count,
        default=len(SUBJECTS),
        help="the first of the words, those it was trained on (default: all %(default)s)",
    )
    parser.add_argument(
        "--prompts", type=_count, default=300, help="captions (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
