"""The description of an exported model, ``1/export.json``, and the check of its files."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdm_serve.engine.card import ModelCard
from cdm_serve.errors import StartError

FORMAT = 1
COMPONENTS = ("text_encoder", "transformer", "vae_decoder")


@dataclass(frozen=True)
class TokenizerFile:
    """One ``tokenizers`` file; prompts are cut or padded to ``length`` ids.

    With ``quotation`` a prompt is first split as ``pieces`` does, and special tokens stay out.
    """

    path: Path
    length: int
    pad_id: int
    quotation: bool = False


@dataclass(frozen=True)
class Manifest:
    """An exported model: what it can make and the files that make it.

    ``conditions`` are the text encoder's outputs, which the transformer takes by the same names.
    """

    name: str
    architecture: str
    fingerprint: str
    sizes: tuple[str, ...]
    default_size: str
    default_steps: int
    channels: int
    downscale: int
    sigmas: dict[str, dict[int, tuple[float, ...]]]
    tokenizers: tuple[TokenizerFile, ...]
    components: dict[str, Path]
    conditions: tuple[str, ...]
    runtimes: tuple[str, ...]
    max_batch: int

    @property
    def max_steps(self) -> int:
        """The longest schedule that was exported for every size."""
        return min(max(grids) for grids in self.sigmas.values())

    def latent_shape(self, size: str) -> tuple[int, int, int]:
        """(C, h, w) of one picture of ``size`` (``WIDTHxHEIGHT``)."""
        width, height = (int(side) for side in size.split("x"))
        return self.channels, height // self.downscale, width // self.downscale

    def card(self) -> ModelCard:
        """What a client of the model needs to know."""
        return ModelCard(
            id=self.name,
            architecture=self.architecture,
            fingerprint=self.fingerprint,
            sizes=self.sizes,
            default_size=self.default_size,
            default_steps=self.default_steps,
            max_steps=self.max_steps,
            downscale=self.downscale,
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a version folder (``model_repository/NAME/1``), its files checked by hash.

    Raises:
        StartError: ``export.json`` or a file it names is missing, unreadable or not the one that
            was exported.
    """
    path = folder / "export.json"
    if not path.is_file():
        raise StartError(f"{path} is missing: export the model first with {_rebuild(folder)}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise StartError(
                f"{path} has format {data['format']!r}, this version reads format {FORMAT}: "
                f"export again with {_rebuild(folder)}"
            )
        manifest = parse_manifest(data, folder)
        if missing := set(COMPONENTS) - manifest.components.keys():
            raise ValueError(f"no component {' and no '.join(sorted(missing))}")
        hashes = _hashes(data, folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(
            f"{path} cannot be read ({type(error).__name__}: {error}): "
            f"export again with {_rebuild(folder)}"
        ) from error
    _check_files(hashes, folder)
    return manifest


def parse_manifest(data: dict[str, Any], folder: Path) -> Manifest:
    """The contents of ``export.json``, whose files lie in ``folder``; they are not looked at.

    Raises:
        ValueError: something does not fit together.
        KeyError, TypeError, AttributeError: something is missing or of another type.
    """
    components = data["components"]
    manifest = Manifest(
        name=str(data["name"]),
        architecture=str(data["architecture"]),
        fingerprint=str(data["fingerprint"]),
        sizes=tuple(data["sizes"]),
        default_size=data["default_size"],
        default_steps=int(data["default_steps"]),
        channels=int(data["latents"]["channels"]),
        downscale=int(data["latents"]["downscale"]),
        sigmas={
            size: {int(steps): tuple(map(float, grid)) for steps, grid in grids.items()}
            for size, grids in data["sigmas"].items()
        },
        tokenizers=tuple(_tokenizer(entry, folder) for entry in data["tokenizers"]),
        components={name: folder / entry["file"] for name, entry in components.items()},
        conditions=tuple(components.get("text_encoder", {"outputs": {}})["outputs"]),
        runtimes=tuple(data["runtimes"]),
        max_batch=int(data["max_batch"]),
    )
    if manifest.default_size not in manifest.sizes:
        raise ValueError(f"default_size {manifest.default_size} is not among the sizes")
    for size in manifest.sizes:
        for steps, grid in manifest.sigmas[size].items():
            if len(grid) != steps + 1:
                raise ValueError(f"sigmas of {size} for {steps} steps have {len(grid)} values")
        if manifest.default_steps not in manifest.sigmas[size]:
            raise ValueError(f"sigmas of {size} lack default_steps {manifest.default_steps}")
    return manifest


def _tokenizer(entry: dict[str, Any], folder: Path) -> TokenizerFile:
    quotation = entry.get("quotation")
    if quotation not in (None, "characters"):
        raise ValueError(f"tokenizer rule quotation {quotation!r} is unknown")
    path, length, pad_id = folder / entry["file"], int(entry["length"]), int(entry["pad_id"])
    return TokenizerFile(path, length, pad_id, quotation is not None)


def _hashes(data: dict[str, Any], folder: Path) -> dict[Path, str]:
    """Every file of the export with the hash it must have; large weights lie beside their graph."""
    graphs = list(data["components"].values())
    weights = [graph["data"] for graph in graphs if "data" in graph]
    engines = data.get("tensorrt", {"components": {}})["components"].values()
    entries = [*graphs, *weights, *engines, *data["tokenizers"]]
    return {folder / entry["file"]: entry["sha256"] for entry in entries}


def _check_files(hashes: dict[Path, str], folder: Path) -> None:
    for path, expected in hashes.items():
        if not path.is_file():
            raise StartError(f"{path} is missing: export again with {_rebuild(folder)}")
        found = file_sha256(path)
        if found != expected:
            raise StartError(
                f"{path} is not the file that was exported (sha256 {found[:12]}, export.json says "
                f"{expected[:12]}): export again with {_rebuild(folder)}"
            )


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rebuild(folder: Path) -> str:
    return f"`cdm-export STUDENT --to onnx --out {folder.parent.parent}`"
