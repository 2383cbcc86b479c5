"""The description of an exported model, ``1/export.json``, and the check of its files."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdm_serve.engine.card import ModelCard, divides
from cdm_serve.errors import StartError

FORMAT = 1
HASHERS = 4
COMPONENTS = ("text_encoder", "transformer", "vae_decoder")
# For pictures that come in; for previews, and for pictures where speed is worth more than detail.
OPTIONAL = ("vae_encoder", "tiny_decoder")
# The components that make pixels, by the names that requests have for them.
DECODERS = {"full": "vae_decoder", "tiny": "tiny_decoder"}
# What a transformer is conditioned on besides texts, where it edits: latents without noise.
PICTURE = "picture"

FileEntry = dict[str, Any]
View = tuple[int, int, str]
"""Width, height and Pillow's filter of a resize."""


@dataclass(frozen=True)
class TokenizerFile:
    """One ``tokenizers`` file; prompts are cut or padded to ``length`` ids.

    With ``quotation`` a prompt is first split as ``pieces`` does, and special tokens stay out.
    ``template`` is the text before and behind each prompt, cut with it.
    """

    path: Path
    length: int
    pad_id: int
    quotation: bool = False
    template: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Manifest:
    """An exported model: what it can make and the files that make it.

    ``conditions`` are the text encoder's outputs, which the transformer takes by the same names;
    ``engines`` is what ``export.tensorrt`` says of those it built. Besides ``sizes`` those can be
    made whose sides ``multiple`` divides, up to ``longest_side``; none where it is 0. Components of
    one of the ``identities`` are the same, that of text with its tokenizers. Where there are
    ``views``, by size, the text encoder takes a picture too, resized so, and the transformer its
    latents.
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
    identities: dict[str, str]
    conditions: tuple[str, ...]
    runtimes: tuple[str, ...]
    precision: str
    max_batch: int
    engines: dict[str, Any] | None = None
    verified: str = "full"
    multiple: int = 0
    longest_side: int | None = None
    views: dict[str, tuple[View, ...]] = field(default_factory=dict)

    @property
    def needs_picture(self) -> bool:
        """Whether it makes nothing of a prompt alone."""
        return bool(self.views)

    @property
    def max_steps(self) -> int:
        """The longest schedule that was exported for every size."""
        return min(max(grids) for grids in self.sigmas.values())

    @property
    def edits(self) -> bool:
        """Whether pictures can come in."""
        return "vae_encoder" in self.components

    @property
    def decoders(self) -> tuple[str, ...]:
        """Those of ``DECODERS`` that it has."""
        return tuple(name for name, each in DECODERS.items() if each in self.components)

    def grids(self, size: str) -> dict[int, tuple[float, ...]] | None:
        """Sigmas by number of steps; None for a size that cannot be made."""
        possible = size in self.sigmas or divides(self.multiple, self.longest_side, size)
        return self.sigmas.get(size, self.sigmas[self.default_size]) if possible else None

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
            edits=self.edits,
            decoders=self.decoders,
            verified=self.verified,
            multiple=self.multiple,
            longest_side=self.longest_side,
            needs_picture=self.needs_picture,
        )


def read_manifest(folder: Path, *, full: bool = False) -> Manifest:
    """The manifest in a version folder (``model_repository/NAME/1``), its files checked.

    A file that has its size and is older than ``export.json``, which is written last, is taken for
    the exported one; others are hashed, or all of them if ``full``.

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
        needed = {*COMPONENTS, *(["vae_encoder"] if manifest.needs_picture else [])}
        if missing := needed - manifest.components.keys():
            raise ValueError(f"no component {' and no '.join(sorted(missing))}")
        entries = _entries(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(
            f"{path} cannot be read ({type(error).__name__}: {error}): "
            f"export again with {_rebuild(folder)}"
        ) from error
    _check_links(data, folder)
    exported = 0 if full else path.stat().st_mtime_ns
    with ThreadPoolExecutor(HASHERS) as pool:
        for _ in pool.map(lambda entry: _check_file(entry, folder, exported), entries):
            pass
    return manifest


def parse_manifest(data: dict[str, Any], folder: Path) -> Manifest:
    """The contents of ``export.json``, whose files lie in ``folder``; they are not looked at.

    Raises:
        ValueError: something does not fit together.
        KeyError, TypeError, AttributeError: something is missing or of another type.
    """
    components = data["components"]
    # Engines are built for their sizes alone.
    others = {} if "tensorrt" in data else data.get("any_size", {})
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
        identities={name: _identity(data, name) for name in components},
        conditions=tuple(components.get("text_encoder", {"outputs": {}})["outputs"]),
        runtimes=tuple(data["runtimes"]),
        precision=str(data["precision"]),
        max_batch=int(data["max_batch"]),
        engines=data.get("tensorrt"),
        verified=str(data.get("verification", {}).get("level", "full")),
        multiple=int(others.get("multiple", 0)),
        longest_side=others.get("longest_side"),
        views={
            size: tuple((int(width), int(height), str(filter)) for width, height, filter in steps)
            for size, steps in data.get("views", {}).items()
        },
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
    before, behind = entry.get("template") or ("", "")
    return TokenizerFile(path, length, pad_id, quotation is not None, (before, behind))


def _identity(data: dict[str, Any], component: str) -> str:
    """Equal for what computes the same: by the contents of all files that it is loaded from."""
    entry = data["components"][component]
    engines = data.get("tensorrt", {}).get("components", {})
    parts = [entry["sha256"], entry.get("data", {}).get("sha256"), engines.get(component)]
    if component == "text_encoder":
        parts += data["tokenizers"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _entries(data: dict[str, Any]) -> list[FileEntry]:
    """Every file of the export, as ``file_entry`` has it; large weights lie beside their graph."""
    graphs = list(data["components"].values())
    weights = [graph["data"] for graph in graphs if "data" in graph]
    engines = data.get("tensorrt", {"components": {}})["components"].values()
    return [*graphs, *weights, *engines, *data["tokenizers"]]


def _check_links(data: dict[str, Any], folder: Path) -> None:
    """Runtimes look for weights beside the graph itself, and follow no link to other folders."""
    for graph in data["components"].values():
        for entry in (graph, graph["data"]) if "data" in graph else ():
            path = folder / entry["file"]
            if path.is_symlink():
                raise StartError(
                    f"{path} is a link, which runtimes do not follow to weights: put the file "
                    f"itself there, with `cp --remove-destination {path.resolve()} {path}`"
                )


def _check_file(entry: FileEntry, folder: Path, exported: int) -> None:
    """``exported`` is when ``export.json`` was written, in ns; 0: the bytes are looked at."""
    path = folder / entry["file"]
    if not path.is_file():
        raise StartError(f"{path} is missing: export again with {_rebuild(folder)}")
    stat = path.stat()
    size = entry.get("bytes", stat.st_size)
    found, expected = f"{stat.st_size} bytes", str(size)
    if stat.st_size == size:
        if stat.st_mtime_ns < exported:
            return
        digest = file_sha256(path)
        if digest == entry["sha256"]:
            return
        found, expected = f"sha256 {digest[:12]}", entry["sha256"][:12]
    raise StartError(
        f"{path} is not the file that was exported ({found}, export.json says {expected}): "
        f"export again with {_rebuild(folder)}"
    )


def file_entry(path: Path) -> FileEntry:
    """What ``export.json`` says of a file."""
    return {"file": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size}


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rebuild(folder: Path) -> str:
    return f"`cdm-export STUDENT --to onnx --out {folder.parent.parent}`"
