"""Where the tritonserver of the ``nvidia-pytriton`` wheel is, found without importing pytriton."""

import ctypes.util
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import cdm_serve
from cdm_serve.errors import StartError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class TritonWheel:
    """The parts of the wheel that a server needs."""

    server: Path
    backend: Path
    stub: Path
    libraries: Path

    def link_backend(self, folder: Path) -> Path:
        """Lay out the python backend below ``folder``; returns the ``--backend-directory``.

        Links, because copies lose the libraries they find relative to themselves. The folder is on
        the stub's import path, so a link to this package makes the server run this version of it.
        """
        python = folder / "backends" / "python"
        python.mkdir(parents=True)
        for target in (self.backend, self.backend.parent / "triton_python_backend_utils.py"):
            (python / target.name).symlink_to(target)
        (python / self.stub.name).symlink_to(self.stub)
        package = Path(cdm_serve.__file__).parent
        (python / package.name).symlink_to(package)
        return python.parent

    def environment(self) -> dict[str, str]:
        """The caller's, with the wheel's libraries, libpython and this Python found first.

        And with one heap for all threads of a process: of several, each keeps what pictures left in
        it, and a model's process grew by a quarter over 20,000 requests.
        """
        libraries = [sysconfig.get_config_var("LIBDIR"), str(self.libraries)]
        inherited = os.environ.get("LD_LIBRARY_PATH")
        return (
            {"MALLOC_ARENA_MAX": "1"}
            | os.environ
            | {
                "LD_LIBRARY_PATH": ":".join([*libraries, *([inherited] if inherited else [])]),
                "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            }
        )


def find_wheel() -> TritonWheel:
    """The installed wheel.

    Raises:
        StartError: it, its stub for this Python or libpython is missing.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise StartError(
            "the bundled Triton is not installed: run `pip install 'cdm-serve[cpu]'`, or name a "
            "running server with --triton HOST:PORT"
        )
    root = Path(spec.origin).parent
    server = root / "tritonserver"
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        raise StartError(
            f"the bundled Triton has no python backend for Python {PYTHON} ({stub} is missing): "
            "use Python 3.11"
        )
    _check_libpython()
    return TritonWheel(
        server=server / "bin" / "tritonserver",
        backend=server / "backends" / "python" / "libtriton_python.so",
        stub=stub,
        libraries=root.parent / "nvidia_pytriton.libs",
    )


def _check_libpython() -> None:
    name = f"libpython{PYTHON}.so.1.0"
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
    ]
    if any((Path(folder) / name).is_file() for folder in folders if folder):
        return
    if ctypes.util.find_library(f"python{PYTHON}") is None:
        raise StartError(
            f"{name} is missing, which Triton's python backend needs: on Debian or Ubuntu run "
            f"`apt install libpython{PYTHON}`"
        )
