"""The networks inside a single-file checkpoint, under the names that their makers gave weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.errors import DistillError

# What precedes the weights of parts that all architectures have.
_PREFIXES = {"model.diffusion_model.": "transformer", "first_stage_model.": "vae", "vae.": "vae"}
_TEXT_ENCODERS = "text_encoders."


class SingleFile:
    """A file's weights by component and, within it, by name; they stay in the file until used.

    Without a prefix they are the transformer's, as FLUX.1 is published.

    Args:
        path: a safetensors file.
        text_encoders: by component, what its weights are called in there, such as ``clip_l``.
    """

    def __init__(self, path: Path, text_encoders: Mapping[str, str]) -> None:
        self.path = path
        self.parts: dict[str, dict[str, Tensor]] = {}
        prefixes = _PREFIXES | {
            f"{_TEXT_ENCODERS}{called}.transformer.": name for name, called in text_encoders.items()
        }
        bare: dict[str, Tensor] = {}
        for key, tensor in load_file(path).items():
            prefix = next((each for each in prefixes if key.startswith(each)), None)
            if prefix is not None:
                part = self.parts.setdefault(prefixes[prefix], {})
                part[key.removeprefix(prefix)] = tensor
            elif not key.startswith(_TEXT_ENCODERS):
                bare[key] = tensor
        self.parts.setdefault("transformer", bare)
        for name in (name for name, called in text_encoders.items() if called == "clip_l"):
            positions = "text_model.embeddings.position_embedding.weight"
            if name in self.parts and positions in self.parts[name]:
                # Its pooled output is used as it is.
                width = self.parts[name][positions].shape[1]
                self.parts[name]["text_projection.weight"] = torch.eye(width)

    def load(
        self, name: str, network_class: Any, config: Path, dtype: torch.dtype | None
    ) -> nn.Module:
        """The network of a component that is in here.

        Args:
            name: of the component.
            network_class: of diffusers or transformers.
            config: folder of the ``config.json`` that belongs to it.
            dtype: of all weights; None is that of the network's class.

        Raises:
            DistillError: the file has another network than the folder.
        """
        weights, described = self.parts.pop(name), config.resolve() / "config.json"
        load = _text_encoder if issubclass(network_class, PreTrainedModel) else _network
        try:
            network, missing, surplus = load(network_class, weights, config, dtype)
        except DistillError:
            raise
        except Exception as error:  # diffusers looks for a name and for a number of blocks
            said = str(error).partition(". ")[0].splitlines()
            raise DistillError(
                f"{self.path} holds no {network_class.__name__} such as {described} "
                f"describes ({type(error).__name__}: {' '.join(said)}); is it of another base?"
            ) from error
        for names, what in ((missing, "is missing"), (surplus, "has no place")):
            if names:
                raise DistillError(
                    f"{self.path}: weight {names[0]} (the first of {len(names)}) {what} in the "
                    f"{network_class.__name__} that {described} describes; is it of "
                    "another base?"
                )
        return network


_Loaded = tuple[nn.Module, list[str], list[str]]  # what is missing in the file, or has no place


def _network(
    network_class: Any, weights: dict[str, Tensor], config: Path, dtype: torch.dtype | None
) -> _Loaded:
    if network_class.__name__ not in single_file_model.SINGLE_FILE_LOADABLE_CLASSES:
        raise DistillError(
            f"diffusers reads no {network_class.__name__} from a single file; expected a folder"
        )
    with _unused() as surplus:
        try:
            network: nn.Module = network_class.from_single_file(
                weights, config=str(config), dtype=dtype
            )
        except NotImplementedError as error:  # torch's, of what was made without contents
            raise ValueError("some of its weights are missing") from error
    return network, [name for name, each in network.state_dict().items() if each.is_meta], surplus


def _text_encoder(
    network_class: Any, weights: dict[str, Tensor], config: Path, dtype: torch.dtype | None
) -> _Loaded:
    """By the names of transformers itself, which takes what it needs of a whole model."""
    network, info = network_class.from_pretrained(
        None,
        config=network_class.config_class.from_pretrained(config),
        state_dict=weights,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return network, sorted([*info["missing_keys"], *(k for k, *_ in info["mismatched_keys"])]), []


@contextmanager
def _unused() -> Iterator[list[str]]:
    """The names of weights without a place, of which diffusers only warns."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _, _, names = record.getMessage().partition("['")
            found.extend(names.removesuffix("']").split(", "))

    handler, logger = Handler(), single_file_model.logger
    level, logger.propagate = logger.level, False
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True
