"""Picture sizes as users write them: WIDTHxHEIGHT."""

from __future__ import annotations

import re
from dataclasses import dataclass

from export.errors import ExportError

_PATTERN = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Size:
    """A picture size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Read a comma-separated list such as ``64x64,96x64``; repeated sizes count once.

    Raises:
        ExportError: an entry is not WIDTHxHEIGHT.
    """
    sizes = []
    for entry in text.split(","):
        match = _PATTERN.fullmatch(entry.strip())
        if match is None:
            raise ExportError(
                f"--sizes: {entry.strip()!r} is not WIDTHxHEIGHT in pixels, such as 64x64,96x64"
            )
        sizes.append(Size(int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(sizes))
