"""A student that is put together: another transformer in a base's pipeline, LoRAs merged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusers.utils import logging
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.adapters import Adapter
from distill.adapters.loading import pipeline_folder
from distill.errors import DistillError
from export.errors import ExportError
from export.layout import check_pipeline, is_transformer, keys
from export.request import Lora

_PEFT = "base_model.model."
# DoRA, LoKr and LoHa, of which diffusers leaves out a part or all.
_OTHER_KINDS = re.compile(r"dora_scale|lora_magnitude_vector|\.lokr_|\.hada_")


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
    """Add LoRAs to the weights, one after the other, as diffusers does it.

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
        given = [key for key in keys(file) if ".alpha" not in key]
        if other := next(filter(_OTHER_KINDS.search, given), None):
            raise ExportError(
                f"{file} is more than a plain LoRA (weight {other}); merge it where it was "
                "trained, and export the merged weights"
            )
        shapes = {name: each.shape for name, each in adapter.transformer.named_parameters()}
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)  # what is wrong is said here
        try:
            if any(key.startswith(_PEFT) for key in given):
                weights = _peft(file)
                pipeline.load_lora_weights(weights)
            else:  # by its place, since its header may say the scale
                weights = load_file(file)
                pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
            converted = pipeline.lora_state_dict(weights)
        except ExportError:
            raise
        except Exception as error:  # diffusers, peft and safetensors raise their own kinds
            lines = [line.strip() for line in str(error).strip().splitlines()]
            said = " ".join(lines[: 1 + lines[0].endswith(":")]) if lines else repr(error)
            raise ExportError(f"{file} cannot be merged: {said}") from error
        finally:
            logging.set_verbosity(verbosity)
        placed = 2 * sum(
            hasattr(module, "lora_A") and bool(module.lora_A)
            for network in adapter.networks.values()
            for module in network.modules()
            if isinstance(module, nn.Module)
        )
        # A fused projection becomes several; a text encoder that diffusers does not take, nothing.
        lost = sum("lora" in key and "alpha" not in key for key in converted) - placed
        texts = sum(key.startswith("lora_te") for key in given)
        lost += max(0, texts - sum(key.startswith("text_encoder") for key in converted))
        if lost > 0 or not placed:
            raise ExportError(
                f"{file}: {lost or len(given)} of its weights have no place in this student; "
                "expected a LoRA of the same architecture and size"
            )
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
        for name, each in adapter.transformer.named_parameters():
            if each.shape != shapes[name]:  # diffusers has widened it
                wider, narrow = list(each.shape), list(shapes[name])
                raise ExportError(
                    f"{file} is for a wider network: {name} is {wider} with it, and {narrow} here; "
                    "control LoRAs, which take a picture beside the noise, are not served"
                )


def _peft(file: Path) -> dict[str, Tensor]:
    """What peft saved of a transformer, under diffusers' names; its scale is in another file.

    Raises:
        ExportError: that file is missing, or says more than a scale.
    """
    path = file.with_name("adapter_config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        alpha, rank = float(config["lora_alpha"]), int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{file} is saved by peft, and {path}, which says its scale, cannot be read"
        ) from error
    if other := next(filter(config.get, ("use_dora", "rank_pattern", "alpha_pattern")), None):
        raise ExportError(
            f"{path}: {other} is not read; merge it where it was trained (merge_and_unload), and "
            "export the merged weights"
        )
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return {
        f"transformer.{name.removeprefix(_PEFT)}": scale * each if ".lora_B." in name else each
        for name, each in load_file(file).items()
    }
