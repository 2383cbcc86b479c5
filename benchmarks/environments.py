"""Python environments for what pins packages that ours does not, made when first needed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.errors import BenchError


def environment(
    name: str, requirements: Path, say: Callable[[str], None], without: Sequence[str] = ()
) -> Path:
    """Return the Python of a folder in ``~/.cache/cdm-serve`` that has the requirements.

    Args:
        name: of the environment; other requirements make another folder.
        requirements: pip's file.
        say: is told that an installation begins.
        without: what comes with them, and is taken out again.

    Raises:
        BenchError: they cannot be installed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdm-serve"
    folder = cache / f"{name}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():
                say(f"installing {name} in {folder}, once: some gigabytes, some minutes")
                shutil.rmtree(folder, ignore_errors=True)
                _run([sys.executable, "-m", "venv", folder])
                _run([python, "-m", "pip", "install", "--quiet", "-r", requirements])
                for package in without:
                    _run([python, "-m", "pip", "uninstall", "--quiet", "--yes", package])
                stamp.touch()
    except OSError as error:
        raise BenchError(f"{name} cannot be installed in {folder}: {error}") from None
    return python


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(map(str, command))}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """Return the last line that names an error, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["nothing"])[-1][:300]
