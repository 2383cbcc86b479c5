"""A model too large for memory by slices of its layers: what a layer costs, and so the whole.

``python -m benchmarks.export_slices longcat --out result.json`` exports one layer of each kind,
then two of one kind and one of the others, each in a process of its own, whose peak memory it is.
The whole is extrapolated from their differences, and said to be so; its weights are exact.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.export_full_size import CONFIGURATIONS, LAYERS
from benchmarks.record import write_result
from export.exporter import stage
from export.precision import PRECISIONS

COSTS = ("weights", "seconds", "peak_bytes", "file_bytes")


def main(argv: list[str] | None = None) -> int:
    """Export the slices, print what follows as JSON, and write it to ``--out``."""
    arguments = _parser().parse_args(argv)
    try:
        result = measure(arguments.architecture, arguments.precision, Console(stderr=True))
        print(json.dumps(result, indent=2))
        if arguments.out is not None:
            write_result(arguments.out, result, ["onnx", "onnxscript", "transformers"])
    except BenchError as error:
        print(f"export_slices: {error}", file=sys.stderr)
        return 2
    return 0


def measure(name: str, precision: str, console: Console) -> dict[str, Any]:
    """The slices, what a layer of each kind adds, and the whole as extrapolated from that.

    Raises:
        BenchError: a slice could not be exported.
    """
    kinds = [kind for kind in LAYERS if kind in CONFIGURATIONS[name]]
    whole = {kind: CONFIGURATIONS[name][kind] for kind in kinds}
    one = dict.fromkeys(kinds, 1)
    base = _slice(name, precision, one, console)
    more = {kind: _slice(name, precision, one | {kind: 2}, console) for kind in kinds}
    per_layer = {
        kind: {key: round(more[kind][key] - base[key], 1) for key in COSTS} for kind in kinds
    }
    return {
        "architecture": name,
        "precision": precision,
        "slices": [base, *more.values()],
        "per_layer": per_layer,
        "extrapolated": {"layers": whole, **extrapolated(base, per_layer, whole)},
    }


def extrapolated(
    base: dict[str, Any], per_layer: dict[str, dict[str, Any]], whole: dict[str, int]
) -> dict[str, Any]:
    """The costs of all layers, from those of one of each kind and of each one more."""
    return {
        key: round(base[key] + sum((whole[kind] - 1) * per_layer[kind][key] for kind in whole), 1)
        for key in COSTS
    }


def _slice(name: str, precision: str, layers: dict[str, int], console: Console) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.export_full_size", name, "--precision", precision]
    for kind, number in layers.items():
        option = "--single-layers" if kind == "num_single_layers" else "--layers"
        command += [option, str(number)]
    with stage(console, f"{name} with {layers}"):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"a slice of {name} could not be exported: {done.stderr.strip()[-200:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.export_slices", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("architecture", choices=sorted(CONFIGURATIONS))
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="bf16")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
