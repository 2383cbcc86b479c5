"""``cdm-export STUDENT --to onnx --out model_repository``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from export.errors import ExportError, VerificationError
from export.sizes import parse_sizes


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0: exported, 1: not equal to torch, 2: something the user can put right."""
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
    print(f"exported to {folder}")
    return 0


def _export(arguments: argparse.Namespace) -> Path:
    if arguments.to == "tensorrt":
        raise ExportError(
            "--to tensorrt is not in this version, which exports ONNX only; use --to onnx"
        )
    sizes = parse_sizes(arguments.sizes) if arguments.sizes is not None else None
    # diffusers and transformers tell of optional packages and show bars of their own otherwise.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    console = Console()
    try:
        with console.status("load torch and diffusers ..."):  # seconds, so not before it is needed
            from export.exporter import Request, export_onnx
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed; exporting needs: pip install 'cdm-serve[export]'"
        ) from error
    request = Request(arguments.student, arguments.out, arguments.name, sizes)
    return export_onnx(request, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cdm-export",
        description="Export a distilled student, compare it with torch, and put it where Triton "
        "loads it from.",
    )
    parser.add_argument(
        "student", type=Path, metavar="STUDENT", help="diffusers folder, as cdm-distill writes it"
    )
    parser.add_argument(
        "--to", required=True, choices=("onnx", "tensorrt"), help="format of the exported model"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="Triton model repository"
    )
    parser.add_argument("--name", help="model name (default: the student's)")
    parser.add_argument(
        "--sizes",
        metavar="WxH,...",
        help="sizes in pixels to verify and serve, such as 64x64,96x64 (default: the student's)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
