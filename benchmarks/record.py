"""A result and what it was measured on, in one JSON file that appears whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.files import write_whole

# What decides how fast a matrix is multiplied.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_PACKAGES = ("cdm-serve", "numpy", "onnxruntime", "openvino", "pillow", "torch", "diffusers")
_SOURCE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Environment:
    """The machine, the packages that matter, and the commit of this source.

    ``dirty`` is true when tracked files other than results differ from the commit; both are None
    outside a git checkout.
    """

    machine: str
    processor: str
    cores: int
    cpu_flags: tuple[str, ...]
    memory_bytes: int
    python: str
    packages: dict[str, str]
    commit: str | None
    dirty: bool | None

    @staticmethod
    def here(packages: Sequence[str] = ()) -> Environment:
        """Of this process; ``packages`` are named beside the usual ones, and left out if absent."""
        processor, flags = _processor()
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
        return Environment(
            machine=f"{platform.machine()}, {platform.system()} {platform.release()}",
            processor=processor,
            cores=len(os.sched_getaffinity(0)),
            cpu_flags=tuple(flag for flag in _FLAGS if flag in flags),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            python=platform.python_version(),
            packages=_versions((*_PACKAGES, *packages)),
            commit=commit,
            dirty=None if changes is None else bool(changes),
        )


def write_result(path: Path, result: dict[str, Any], packages: Sequence[str] = ()) -> None:
    """Write ``result`` as JSON with its ``environment`` before it.

    Raises:
        BenchError: it cannot be written.
    """
    whole = {"environment": asdict(Environment.here(packages)), **result}
    write_whole(path, json.dumps(whole, indent=2) + "\n")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    installed = {}
    for name in packages:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _processor() -> tuple[str, set[str]]:
    """Name and flags of the first core."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(_SOURCE), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
