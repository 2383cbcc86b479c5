"""What the user asks for; known before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from export.sizes import Size
from export.tensorrt import Options

COMPONENTS = ("text_encoder", "transformer", "vae_decoder")


@dataclass(frozen=True)
class Request:
    """What to export and where to; ``None`` leaves the choice to the student.

    With ``tensorrt``, engines are built so from the graphs. ``calibration`` is a source of prompts,
    which int8 needs and nothing else takes.
    """

    student: Path
    repository: Path
    name: str | None = None
    sizes: tuple[Size, ...] | None = None
    precision: str | None = None
    max_batch: int = 16
    components: tuple[str, ...] = COMPONENTS
    tensorrt: Options | None = None
    calibration: str | None = None


def parse_components(text: str) -> tuple[str, ...]:
    """Read ``transformer,vae_decoder``.

    Raises:
        ExportError: an entry is no component.
    """
    names = [entry.strip() for entry in text.split(",")]
    for name in names:
        if name not in COMPONENTS:
            raise ExportError(f"--components: {name!r} is none of {', '.join(COMPONENTS)}")
    return tuple(names)
