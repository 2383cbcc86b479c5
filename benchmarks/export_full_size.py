"""Export a transformer of a real model's shape, with random weights: peak memory and time.

``python -m benchmarks.export_full_size sd3 --out result.json``; ``--layers 4`` takes a slice of the
layers, where memory does not allow them all. The graph is written, not compared with torch: that
is done on small models, and would need this one in float32 beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import onnx
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LongCatImageTransformer2DModel,
    SD3Transformer2DModel,
)

from benchmarks.errors import BenchError
from benchmarks.files import write_whole
from distill.adapters.longcat import LongCatAdapter
from distill.adapters.sd3 import Sd3Adapter
from export.architectures import architecture
from export.components import transformer_graph
from export.graphs import write_onnx
from export.precision import PRECISIONS

# SD3-Medium's own configuration; LongCat-Image's, with an estimate of its numbers of layers.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "sd3": {
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
        "sample_size": 128,
    },
    "longcat": {
        "num_layers": 10,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "patch_size": 1,
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "pooled_projection_dim": 3584,
        "axes_dims_rope": [16, 56, 56],
    },
}


def main(argv: list[str] | None = None) -> int:
    """Export, print what it took as JSON, and write it to ``--out``; 2 if that cannot be done."""
    arguments = _parser().parse_args(argv)
    result = measure(arguments.architecture, arguments.precision, arguments.layers)
    text = json.dumps(result, indent=2)
    print(text)
    try:
        if arguments.out is not None:
            write_whole(arguments.out, text + "\n")
    except BenchError as error:
        print(f"export_full_size: {error}", file=sys.stderr)
        return 2
    return 0


def measure(name: str, precision: str, layers: int | None) -> dict[str, Any]:
    """Time, peak memory of this process and sizes of one export.

    Args:
        name: of the architecture.
        precision: of the graph, and of the weights in memory.
        layers: of each kind, no more than the model has; all of them if it is ``None``.
    """
    config = dict(CONFIGURATIONS[name])
    for key in ("num_layers", "num_single_layers"):
        if layers is not None and key in config:
            config[key] = min(layers, config[key])
    adapter = _adapter(name, config, PRECISIONS[precision].dtype)
    weights = sum(weight.numel() for weight in adapter.transformer.parameters())
    before, start = _peak_bytes(), perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transformer.onnx"
        write_onnx(transformer_graph(architecture(adapter), PRECISIONS[precision]), path)
        seconds, peak = perf_counter() - start, _peak_bytes()
        onnx.checker.check_model(path, full_check=True)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
    return {
        "architecture": name,
        "precision": precision,
        "layers": {key: value for key, value in config.items() if key.endswith("layers")},
        "weights": weights,
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "peak_bytes_before_export": before,
        "file_bytes": size,
        "nodes": nodes,
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "torch": torch.__version__,
    }


def _adapter(name: str, config: dict[str, Any], dtype: torch.dtype) -> Sd3Adapter | LongCatAdapter:
    """An adapter around a transformer with random weights, made in ``dtype``, and nothing else."""
    network = SD3Transformer2DModel if name == "sd3" else LongCatImageTransformer2DModel
    torch.set_default_dtype(dtype)
    try:
        transformer = network(**config)
    finally:
        torch.set_default_dtype(torch.float32)
    pipeline: Any = SimpleNamespace(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae_scale_factor=8,
        tokenizer_max_length=512,
    )
    return Sd3Adapter(pipeline) if name == "sd3" else LongCatAdapter(pipeline)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.export_full_size", description=__doc__)
    parser.add_argument("architecture", choices=sorted(CONFIGURATIONS))
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp16")
    parser.add_argument("--layers", type=int, help="no more than these of each kind")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
