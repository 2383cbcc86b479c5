"""One class per architecture: what differs between them when they are exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.adapters import Adapter
from export.architectures.architecture import Architecture
from export.architectures.longcat import LongCat
from export.architectures.sd3 import Sd3
from export.errors import ExportError

_ARCHITECTURES: dict[str, Any] = {"sd3": Sd3, "longcat": LongCat}


def check_exportable(adapter: Adapter, folder: Path) -> None:
    """Whether there is an exporter for the pipeline in ``folder``.

    Raises:
        ExportError: there is none.
    """
    if adapter.name not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ExportError(f"{folder} is a {adapter.name} pipeline; can be exported: {known}")


def architecture(adapter: Adapter) -> Architecture:
    """The exporter's part for an adapter."""
    made: Architecture = _ARCHITECTURES[adapter.name](adapter)
    return made


__all__ = ["Architecture", "architecture", "check_exportable"]
