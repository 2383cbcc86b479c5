"""A student that is put together: another transformer in a base's pipeline, LoRAs merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from distill.adapters import Adapter
from distill.adapters.components import first_line
from distill.adapters.loading import pipeline_folder
from distill.errors import DistillError
from export.errors import ExportError
from export.layout import check_pipeline, is_transformer, keys
from export.request import Lora


@contextmanager
def assembled(source: Path, base: Path | None) -> Iterator[Path]:
    """A pipeline's folder: the student's own, or links to a base's with the student's transformer.

    Raises:
        ExportError: a hub name cannot be downloaded.
    """
    try:
        if base is None:
            yield source if source.exists() else pipeline_folder(str(source))
            return
        pipeline = base if base.exists() else pipeline_folder(str(base))
    except DistillError as error:
        raise ExportError(str(error)) from error
    index = check_pipeline(pipeline)
    with TemporaryDirectory(prefix="cdm-export-") as temporary:
        folder = Path(temporary)
        for name in ("model_index.json", *index):
            if (pipeline / name).exists():
                own = name == "transformer" and is_transformer(source)
                (folder / name).symlink_to((source if own else pipeline / name).resolve())
        yield folder


def merge(adapter: Adapter, loras: tuple[Lora, ...]) -> None:
    """Add LoRAs to the weights, one after the other; diffusers reads kohya's keys and peft's.

    Raises:
        ExportError: a file is none of this architecture, or the pipeline takes none.
    """
    pipeline = adapter.pipeline
    for file, scale in loras:
        if not hasattr(pipeline, "load_lora_weights"):
            raise ExportError(
                f"{file}: diffusers merges no LoRA into a {type(pipeline).__name__}; merge it "
                "where it was trained, and export the merged weights"
            )
        try:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        except Exception as error:  # diffusers, peft and safetensors raise their own kinds
            raise ExportError(f"{file} cannot be merged: {first_line(error)}") from error
        pairs = sum(
            hasattr(module, "lora_A") and bool(module.lora_A)
            for network in adapter.networks.values()
            for module in network.modules()
            if isinstance(module, nn.Module)
        )
        given = sum(".alpha" not in key for key in keys(file))
        if 2 * pairs < given:  # a fused projection becomes several
            raise ExportError(
                f"{file}: {given - 2 * pairs} of its {given} weights have no place in this "
                "student; expected a LoRA of the same architecture and size"
            )
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
