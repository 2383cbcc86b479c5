"""What the user asks for; known before torch is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from typing import Literal

from cdm_serve.engine.manifest import COMPONENTS, OPTIONAL
from export.errors import ExportError
from export.layout import lora_file

Lora = tuple[Path, float]
"""A file and its scale."""
Level = Literal["full", "quick", "none"]
Device = Literal["cpu", "cuda"]
GridName = Literal["even", "default"]
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Size:
    """A picture size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class EngineOptions:
    """How TensorRT engines are built.

    Attributes:
        refit: weights can be exchanged in the built engine.
        version_compatible: later TensorRT versions can load it.
        hardware_compatible: any GPU from Ampere on can run it, more slowly.
        timing_cache: file of kernel timings, read if it is there and written afterwards.
    """

    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Sampling:
    """What is said by hand of how a student is sampled; ``None`` leaves it to the student."""

    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    grid: GridName | None = None
    guidance: float | None = None
    shift: float | None = None


@dataclass(frozen=True)
class Request:
    """What to export and where to; ``None`` leaves the choice to the student.

    ``level`` is how far the export is compared with torch, which computes on ``device``. With
    ``tensorrt``, engines are built so from the graphs. ``calibration`` is a source of prompts, for
    int8 alone. ``variant_of`` is the model in whose process it is to be served. ``decoder`` is the
    folder or hub name of an ``AutoencoderTiny``, exported beside the student's own decoder.
    """

    student: Path
    repository: Path
    name: str | None = None
    sizes: tuple[Size, ...] | None = None
    precision: str | None = None
    max_batch: int = 16
    components: tuple[str, ...] = (*COMPONENTS, *OPTIONAL)
    tensorrt: EngineOptions | None = None
    calibration: str | None = None
    sampling: Sampling = Sampling()
    base: Path | None = None
    loras: tuple[Lora, ...] = ()
    level: Level = "full"
    device: Device = "cpu"
    decoder: Path | None = None
    variant_of: str | None = None

    @property
    def place(self) -> Path:
        """The folder for the model's own."""
        if self.variant_of is None:
            return self.repository
        return self.repository / self.variant_of / "variants"


def parse_path(text: str) -> Path:
    """A path, also one that a shell has left its ``~`` in, as in ``--out=~/models``."""
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Read a comma-separated list such as ``64x64,96x64``; repeated sizes count once.

    Raises:
        ExportError: an entry is not WIDTHxHEIGHT.
    """
    sizes = []
    for entry in text.split(","):
        match = _SIZE.fullmatch(entry.strip())
        if match is None:
            raise ExportError(
                f"--sizes: {entry.strip()!r} is not WIDTHxHEIGHT in pixels, such as 64x64,96x64"
            )
        sizes.append(Size(int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(sizes))


def parse_sampling(
    steps: int | None = None,
    sigmas: str | None = None,
    grid: GridName | None = None,
    guidance: float | None = None,
    shift: float | None = None,
) -> Sampling:
    """Read ``--steps``, ``--sigmas 1,0.75,0.5,0.25``, ``--grid``, ``--guidance`` and ``--shift``.

    Raises:
        ExportError: no steps, no positive shift, a guidance below 0, or sigmas that are not as many
            or do not fall from 1 towards 0.
    """
    if steps is not None and steps < 1:
        raise ExportError(f"--steps {steps}: at least one step makes a picture")
    if shift is not None and not 0 < shift < inf:
        raise ExportError(f"--shift {shift}: expected a positive number, such as 3")
    if guidance is not None and not 0 <= guidance < inf:
        raise ExportError(f"--guidance {guidance}: expected a number from 0 up, such as 3.5")
    given = None
    if sigmas is not None:
        try:
            given = tuple(float(entry) for entry in sigmas.split(","))
        except ValueError:
            given = ()
        if not given or any(a <= b for a, b in pairwise([1.0 + 1e-9, *given, 0.0])):
            raise ExportError(
                f"--sigmas {sigmas}: expected numbers that fall from at most 1 to above 0, before "
                "the scheduler's shift, such as 1,0.75,0.5,0.25"
            )
        if steps not in (None, len(given)):
            raise ExportError(f"--sigmas has {len(given)} numbers and --steps is {steps}")
    return Sampling(steps, given, grid, guidance, shift)


def parse_lora(text: str) -> Lora:
    """Read ``FILE`` or ``FILE:0.8``; a folder stands for the LoRA in it.

    Raises:
        ExportError: there is no such file, or the scale is no finite number.
    """
    name, colon, number = text.rpartition(":")
    try:
        path, scale = (parse_path(name), float(number)) if colon else (parse_path(text), 1.0)
    except ValueError:
        path, scale = parse_path(text), 1.0
    file = lora_file(path) if path.is_dir() else path
    if file is None or not file.is_file():
        raise ExportError(f"--lora {text}: {path} is no file; expected FILE or FILE:SCALE")
    if not isfinite(scale):
        raise ExportError(f"--lora {text}: the scale is {number}; expected a number such as 0.8")
    return file, scale


def parse_components(text: str) -> tuple[str, ...]:
    """Read ``transformer,vae_decoder``.

    Raises:
        ExportError: an entry is no component.
    """
    names = [entry.strip() for entry in text.split(",")]
    for name in names:
        if name not in Request.components:
            known = ", ".join(Request.components)
            raise ExportError(f"--components: {name!r} is none of {known}")
    return tuple(names)
