"""Export a network of a real model's shape, with random weights: peak memory and time.

``python -m benchmarks.export_full_size sd3 --out result.json``; ``--layers 4`` takes a slice of the
layers, where memory does not allow them all (``benchmarks.export_slices`` extrapolates from some).
The graph is written, not compared with torch: that is done on small models, and would need this
one in float32 beside it.
"""

from __future__ import annotations

import argparse
import json
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
from torch import nn
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

from benchmarks.errors import BenchError
from benchmarks.record import write_result
from distill.adapters.longcat import LongCatAdapter
from distill.adapters.sd3 import Sd3Adapter
from export.architectures import architecture
from export.components import graph
from export.graphs import write_onnx
from export.precision import PRECISIONS

# SD3-Medium's transformer, LongCat-Image's, and the language model that is its text encoder
# (Qwen2.5-VL-7B's). LongCat's numbers of layers are those of other implementations of it; they
# come to the 6.27e9 weights of its published files.
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
    "longcat-text": {
        "num_hidden_layers": 28,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [16, 24, 24],
            "rope_theta": 1e6,
        },
    },
}
# Tokens of LongCat's template around a prompt.
PREFIX, SUFFIX = 36, 5
LAYERS = ("num_layers", "num_single_layers", "num_hidden_layers")


def main(argv: list[str] | None = None) -> int:
    """Export, print what it took as JSON, and write it to ``--out``; 2 if that cannot be done."""
    arguments = _parser().parse_args(argv)
    layers, single_layers = arguments.layers, arguments.single_layers
    wanted = dict(zip(LAYERS, (layers, single_layers or layers, layers), strict=True))
    result = measure(arguments.architecture, arguments.precision, wanted)
    print(json.dumps(result, indent=2))
    try:
        if arguments.out is not None:
            write_result(arguments.out, result, ["onnx", "onnxscript"])
    except BenchError as error:
        print(f"export_full_size: {error}", file=sys.stderr)
        return 2
    return 0


def measure(name: str, precision: str, layers: dict[str, int | None]) -> dict[str, Any]:
    """Time, peak memory of this process and sizes of one export.

    Args:
        name: of the network.
        precision: of the graph, and of the weights in memory.
        layers: by kind, no more than the model has; all of them where there is ``None``.
    """
    config = dict(CONFIGURATIONS[name])
    for kind, most in layers.items():
        if most is not None and kind in config:
            config[kind] = min(most, config[kind])
    adapter, network = _adapter(name, config, PRECISIONS[precision].dtype)
    weights = sum(weight.numel() for weight in network.parameters())
    component = "text_encoder" if name == "longcat-text" else "transformer"
    before, start = _peak_bytes(), perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{component}.onnx"
        write_onnx(graph(component, architecture(adapter), PRECISIONS[precision]), path)
        seconds, peak = perf_counter() - start, _peak_bytes()
        onnx.checker.check_model(path, full_check=True)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
    return {
        "architecture": name,
        "precision": precision,
        "layers": {kind: config[kind] for kind in LAYERS if kind in config},
        "weights": weights,
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "peak_bytes_before_export": before,
        "file_bytes": size,
        "nodes": nodes,
    }


def _adapter(
    name: str, config: dict[str, Any], dtype: torch.dtype
) -> tuple[Sd3Adapter | LongCatAdapter, nn.Module]:
    """An adapter around one network with random weights, made in ``dtype``, and that network."""
    torch.set_default_dtype(dtype)
    try:
        network = _network(name, config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    pipeline: Any = SimpleNamespace(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae_scale_factor=8,
        tokenizer_max_length=512,
    )
    if name == "longcat-text":
        # What the graph's shape needs of the rest of the pipeline.
        model = SimpleNamespace(language_model=network)
        pipeline.text_encoder = SimpleNamespace(model=model)
        pipeline.tokenizer = _Tokenizer()
        pipeline.prompt_template_encode_prefix = "p" * PREFIX
        pipeline.prompt_template_encode_suffix = "s" * SUFFIX
        config = CONFIGURATIONS["longcat"]
        pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**config))
    return (Sd3Adapter if name == "sd3" else LongCatAdapter)(pipeline), network


def _network(name: str, config: dict[str, Any]) -> nn.Module:
    if name == "longcat-text":
        text: nn.Module = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**config))
        return text
    network = SD3Transformer2DModel if name == "sd3" else LongCatImageTransformer2DModel
    made: nn.Module = network(**config)
    return made


class _Tokenizer:
    """One token a character: of the template around a prompt the graph holds the ids alone."""

    pad_token_id = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [1] * len(text)}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.export_full_size", description=__doc__)
    parser.add_argument("architecture", choices=sorted(CONFIGURATIONS))
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp16")
    parser.add_argument("--layers", type=int, help="no more than these of each kind")
    parser.add_argument("--single-layers", type=int, help="LongCat's second kind, where it differs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
