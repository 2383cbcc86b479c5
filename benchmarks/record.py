"""A result and what it was measured on, in one JSON file that appears whole or not at all."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError

RESULTS = Path(__file__).parent / "results"
# What decides how fast a matrix is multiplied, best first.
_FLAGS = ("amx_bf16", "amx_int8", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
_PACKAGES = ("cdm-serve", "numpy", "onnxruntime", "openvino", "pillow", "torch", "diffusers")


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
    gpu: str | None
    memory_bytes: int
    python: str
    packages: dict[str, str]
    commit: str | None
    dirty: bool | None

    @property
    def kind(self) -> str:
        """The kind of machine, for a file's name: ``2-cores-amx``, or the name of the GPU."""
        if self.gpu:
            return "-".join(self.gpu.lower().split())
        best = self.cpu_flags[0] if self.cpu_flags else platform.machine()
        return f"{self.cores}-cores-{best.partition('_')[0].removesuffix('f')}"


def environment(packages: Sequence[str] = (), gpu: str | None = None) -> Environment:
    """Of this process; ``packages`` are named beside the usual ones, and left out if absent."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(":") for line in lines)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    installed = {each.name: each.version for each in metadata.distributions()}
    names = (*_PACKAGES, *packages)
    changes = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    return Environment(
        machine=f"{platform.machine()}, {platform.system()} {platform.release()}",
        processor=fields.get("model name", platform.machine()),
        cores=len(os.sched_getaffinity(0)),
        cpu_flags=tuple(flag for flag in _FLAGS if flag in fields.get("flags", "").split()),
        gpu=gpu,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        packages={name: installed[name] for name in names if name in installed},
        commit=_git("rev-parse", "HEAD"),
        dirty=None if changes is None else bool(changes),
    )


class Record:
    """The file of one command's result on this kind of machine, ``FOLDER/COMMAND-KIND.json``."""

    def __init__(
        self, folder: Path, command: str, packages: Sequence[str] = (), gpu: str | None = None
    ) -> None:
        """Look at the machine and the source now, before anything is measured.

        Raises:
            BenchError: the folder cannot be made; or it is this source's own ``results``, and the
                source differs from its commit.
        """
        self.environment = environment(packages, gpu)
        self.path = folder / f"{command}-{self.environment.kind}.json"
        if folder.resolve() == RESULTS and self.environment.dirty:
            raise BenchError(
                f"{folder} takes results of committed source only, and tracked files differ from "
                f"{str(self.environment.commit)[:8]}: commit them, or name another --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(f"--out: cannot make {folder}: {error}") from error

    @property
    def chart(self) -> Path:
        """Where the picture of the same result goes."""
        return self.path.with_suffix(".png")

    def write(self, result: dict[str, Any]) -> None:
        """Write ``result`` as JSON with its ``environment`` before it.

        Raises:
            BenchError: it cannot be written.
        """
        whole = {"environment": asdict(self.environment), **result}
        write_whole(self.path, json.dumps(whole, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        BenchError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error}") from error


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(RESULTS.parents[1]), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
