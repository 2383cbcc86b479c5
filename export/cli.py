"""``cdm-export STUDENT --to onnx|tensorrt --out model_repository``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from export.errors import ExportError, VerificationError
from export.layout import check_decoder, check_pipeline, check_student
from export.memory import scarce
from export.request import (
    EngineOptions,
    Request,
    parse_components,
    parse_lora,
    parse_path,
    parse_sampling,
    parse_sizes,
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0: exported, 1: not equal to torch, 2: something the user can put right."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        from export.doctor import main as doctor

        return doctor(argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        folder = _export(arguments)
    except (ExportError, VerificationError) as error:
        print(f"cdm-export: {error}", file=sys.stderr)
        return 1 if isinstance(error, VerificationError) else 2
    except OSError as error:
        where = error.filename or f"the export in {arguments.out}"
        print(f"cdm-export: cannot read or write {where}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cdm-export: stopped; nothing was replaced", file=sys.stderr)
        return 130
    if folder is not None:
        print(f"exported to {folder}")
    return 0


def _export(arguments: argparse.Namespace) -> Path | None:
    request = _request(arguments)
    if line := scarce(request):
        print(f"cdm-export: {line}", file=sys.stderr)
    # diffusers and transformers tell of optional packages and show bars of their own otherwise.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    console = Console()
    try:
        with console.status("load torch and diffusers ..."):  # seconds, so not before it is needed
            from export.exporter import dry_run, export
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed; exporting needs: pip install 'cdm-serve[export]'"
        ) from error
    if arguments.dry_run:
        dry_run(request, console)
        return None
    return export(request, console)


def _request(arguments: argparse.Namespace) -> Request:
    components, sizes = arguments.components, arguments.sizes
    if arguments.max_batch < 1:
        raise ExportError(f"--max-batch {arguments.max_batch}: at least one sample makes a batch")
    if arguments.dry_run and arguments.to != "tensorrt":
        raise ExportError("--dry-run shows TensorRT engines; use it with --to tensorrt")
    _check_int8(arguments)
    if arguments.precision == "int8" and arguments.verify == "none":
        raise ExportError("--precision int8 is measured, not promised; leave --verify none out")
    if components and "tiny_decoder" in components and arguments.decoder is None:
        raise ExportError("--components: tiny_decoder is what --decoder gives; add it")
    if arguments.variant_of is not None:
        base = arguments.out / arguments.variant_of
        if not (base / "config.pbtxt").is_file():
            raise ExportError(f"--variant-of {arguments.variant_of}: {base} is no exported model")
    loras = tuple(map(parse_lora, arguments.lora))
    check_student(arguments.student, arguments.base is not None)
    if arguments.base is None and arguments.student.is_dir():
        check_pipeline(arguments.student, tuple(file for file, _ in loras))
    if arguments.decoder is not None:
        check_decoder(arguments.decoder)
    options = EngineOptions(
        refit=arguments.refit,
        version_compatible=arguments.version_compatible,
        hardware_compatible=arguments.hardware_compatible,
        timing_cache=arguments.timing_cache,
    )
    return Request(
        student=arguments.student,
        repository=arguments.out,
        name=arguments.name,
        sizes=parse_sizes(sizes) if sizes is not None else None,
        precision=arguments.precision,
        max_batch=arguments.max_batch,
        components=parse_components(components or ",".join(Request.components)),
        tensorrt=options if arguments.to == "tensorrt" else None,
        calibration=arguments.calibration,
        base=arguments.base,
        level=arguments.verify,
        device=arguments.device,
        decoder=arguments.decoder,
        variant_of=arguments.variant_of,
        loras=loras,
        sampling=parse_sampling(
            arguments.steps,
            arguments.sigmas,
            arguments.grid,
            arguments.guidance,
            arguments.shift,
        ),
    )


def _check_int8(arguments: argparse.Namespace) -> None:
    if arguments.precision in ("int8-weights", "int4-weights") and arguments.to == "tensorrt":
        raise ExportError(f"--precision {arguments.precision} is for --to onnx; use fp16 or bf16")
    if arguments.precision != "int8":
        if arguments.calibration is not None:
            raise ExportError("--calibration is for --precision int8; leave it out")
        return
    if arguments.to == "tensorrt":
        raise ExportError(
            "--precision int8 is for --to onnx: its zero points are not what TensorRT takes; "
            "use fp16 or bf16"
        )
    if arguments.calibration is None:
        raise ExportError(
            "--precision int8 needs --calibration PROMPTS: a file of prompts as users write them, "
            "one a line"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cdm-export",
        description="Export a distilled student, compare it with torch, and put it where Triton "
        "loads it from.",
    )
    parser.add_argument(
        "student",
        type=parse_path,
        metavar="STUDENT",
        help="diffusers folder or hub name; with --base also a transformer, a single-file "
        "checkpoint or a LoRA",
    )
    parser.add_argument(
        "--base",
        type=parse_path,
        metavar="PIPELINE",
        help="diffusers folder or hub name, which has what a transformer, a single file or a LoRA "
        "lacks",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="LoRA to be merged into the weights; can be given several times",
    )
    parser.add_argument(
        "--decoder",
        type=parse_path,
        metavar="TINY",
        help="folder or hub name of an AutoencoderTiny for these latents, such as "
        "madebyollin/taesd3 or madebyollin/taef1, for previews and for pictures on request",
    )
    parser.add_argument(
        "--to", required=True, choices=("onnx", "tensorrt"), help="format of the exported model"
    )
    parser.add_argument(
        "--out", required=True, type=parse_path, metavar="DIR", help="Triton model repository"
    )
    parser.add_argument("--name", help="model name (default: the student's)")
    parser.add_argument(
        "--variant-of",
        metavar="MODEL",
        help="model of the repository in whose process this one is served too, under its own name; "
        "what both have in common is loaded once",
    )
    parser.add_argument(
        "--sizes",
        metavar="WxH,...",
        help="sizes in pixels to verify and serve, such as 64x64,96x64 (default: the student's)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="steps of a picture (default: the student's)"
    )
    parser.add_argument(
        "--sigmas",
        metavar="S,...",
        help="noise levels of these steps before the scheduler's shift, such as 1,0.75,0.5,0.25",
    )
    parser.add_argument(
        "--grid",
        choices=("even", "default"),
        help="sigmas of every other number of steps: 1, 1 - 1/N, ..., or those that diffusers "
        "takes without sigmas (default: the student's)",
    )
    parser.add_argument(
        "--shift",
        type=float,
        metavar="S",
        help="shift sigmas by this at every size, as some LoRAs want (default: the scheduler's)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="G",
        help="what a guidance embedding is given, as in FLUX.1-dev's kind (default: the "
        "student's, else 3.5)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8", "int8-weights", "int4-weights"),
        help="type of the weights and of the arithmetic; int8-weights, int4-weights: matrices "
        "alone are integers, widened when they are used (default: fp32; for TensorRT the type of "
        "two bytes in which the architecture is sound)",
    )
    parser.add_argument(
        "--calibration",
        metavar="PROMPTS",
        help="with --precision int8: a text or .jsonl file, or a dataset, with prompts whose "
        "pictures set the scales",
    )
    parser.add_argument(
        "--max-batch",
        type=int,
        default=Request.max_batch,
        metavar="N",
        help="largest batch to verify and serve (default: %(default)s)",
    )
    parser.add_argument(
        "--verify",
        choices=("full", "quick", "none"),
        default=Request.level,
        help="quick: the smallest size alone in a batch of two, one network in float32 at a time; "
        "none: compare nothing (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default=Request.device,
        help="where torch computes what the graphs are compared with (default: %(default)s)",
    )
    parser.add_argument(
        "--components",
        metavar="NAME,...",
        help=f"export these alone: {', '.join(Request.components)} (default: all; to be served it "
        "takes the first three; the others are for edits, and for --decoder)",
    )
    _add_tensorrt(parser.add_argument_group("with --to tensorrt"))
    return parser


def _add_tensorrt(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dry-run", action="store_true", help="show profiles and trtexec lines, and build nothing"
    )
    group.add_argument(
        "--refit", action="store_true", help="weights can be exchanged in the built engines"
    )
    group.add_argument(
        "--version-compatible", action="store_true", help="later TensorRT versions can load them"
    )
    group.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="any GPU from Ampere on can run them, more slowly",
    )
    group.add_argument(
        "--timing-cache",
        type=parse_path,
        metavar="FILE",
        help="kernel timings, kept between builds",
    )


if __name__ == "__main__":
    sys.exit(main())
