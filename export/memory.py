"""Memory: what an export takes, and giving back what is not used any more."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from math import prod
from pathlib import Path

from cdm_serve.engine.memory import GIB, available
from export.layout import header
from export.request import Request

_FLOAT32 = (None, "fp32", "int8")  # precisions whose weights are loaded so


@dataclass(frozen=True)
class Need:
    """Bytes of memory: compared in full, and with weights of two bytes compared quickly.

    As docs/export.md counts it, of a folder with so many ``weights``.
    """

    weights: int
    full: int
    quick: int


def need(folder: Path) -> Need:
    """What a pipeline's export takes, told from its files.

    Raises:
        ExportError: one of them is no safetensors file.
    """
    networks = [weights(path) for path in folder.iterdir() if path.is_dir()]
    total, largest = sum(networks), max(networks, default=0)
    return Need(total, 4 * total + 2 * largest, 4 * largest)


def scarce(request: Request) -> str | None:
    """What is said where there is less memory than the export will take.

    What is put into a base is as large as what it replaces; of a hub's names nothing is known here.

    Raises:
        ExportError: weights are in no safetensors file.
    """
    folder = request.base or request.student
    if not folder.is_dir():
        return None
    needed, free = need(folder), available()
    full = request.level == "full" or request.precision in _FLOAT32
    takes = needed.full if full else needed.quick
    if takes <= free:
        return None
    text = f"this takes about {takes / GIB:.1f} GiB of memory, and {free / GIB:.1f} are available"
    if full and needed.quick <= free:
        quick = f"--verify quick --precision bf16 (or fp16) takes {needed.quick / GIB:.1f}"
        return f"{text}; {quick}"
    return f"{text}; end other programs, or take a machine with more"


def weights(folder: Path) -> int:
    """In a component's files, as their headers have it; of the variants that lie there the most.

    Raises:
        ExportError: one of them is no safetensors file.
    """
    counts: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        variant = path.name.partition("-000")[0].removesuffix(".safetensors")
        count = sum(prod(entry["shape"]) for entry in header(path).values())
        counts[variant] = counts.get(variant, 0) + count
    return max(counts.values(), default=0)


def give_back() -> None:
    """Collect what hangs in cycles, and return it to the system."""
    gc.collect()
    trim()


def trim() -> None:
    """Return to the system what glibc would keep of memory that was freed."""
    ctypes.CDLL(None).malloc_trim(0)
