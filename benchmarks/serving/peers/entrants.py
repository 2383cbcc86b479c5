"""Who takes part in ``cdm-bench peers``, and how each may be set up."""

import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.serving.exported import Exported, find_export
from benchmarks.serving.servers import Server, last_line, served, started

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
OURS = "cdm-serve"
ALONE = "its engine, without a server"


@dataclass(frozen=True)
class Setting:
    """How a peer is set up; the names are those of its arguments."""

    batch: int = 1
    wait: float = 0.0
    workers: int = 1
    bf16: bool = False
    lock: bool = False

    def arguments(self) -> list[str]:
        """Return them as its command line has them."""
        flags = [f"--{name}" for name in ("bf16", "lock") if getattr(self, name)]
        numbers = [f"--{name}={getattr(self, name):g}" for name in ("batch", "wait", "workers")]
        return [*numbers, *flags]

    def __str__(self) -> str:
        words = [f"batch {self.batch}"] if self.batch > 1 else ["no batches"]
        words += [f"{1000 * self.wait:g} ms"] if self.wait else []
        words += [f"{self.workers} workers"] if self.workers > 1 else []
        words += ["one at a time"] if self.lock else []
        words += ["bf16 autocast"] if self.bf16 else []
        return ", ".join(words)


_TORCH = (
    Setting(batch=16, wait=0.05, bf16=True),
    Setting(batch=16, wait=0.01, bf16=True),
    Setting(batch=8, wait=0.01, bf16=True),
    Setting(batch=8, wait=0.01, workers=2, bf16=True),
    Setting(bf16=True),
)
# OpenVINO computes in bfloat16 by itself, where the processor has it.
_OPENVINO = (
    Setting(batch=16, wait=0.02),
    Setting(batch=16, wait=0.05),
    Setting(batch=8, wait=0.005),
    Setting(batch=8, wait=0.02),
    Setting(batch=8, wait=0.005, workers=2),
    Setting(batch=4, wait=0.002),
    Setting(),
)


@dataclass(frozen=True)
class Peer:
    """A module beside this one, and the settings to try, the likeliest first."""

    title: str
    module: str
    settings: tuple[Setting, ...]
    openvino: bool = False


PEERS = {
    "optimum": Peer("optimum-intel in LitServe", "litserve_peer", _OPENVINO, openvino=True),
    "genai": Peer("OpenVINO GenAI in FastAPI", "genai_peer", (Setting(),), openvino=True),
    "litserve": Peer("diffusers in LitServe", "litserve_peer", _TORCH),
    "ray": Peer("diffusers in Ray Serve", "ray_peer", _TORCH),
    # Without autocast, as its users write it.
    "fastapi": Peer("diffusers in FastAPI", "fastapi_peer", (Setting(lock=True), Setting())),
}


@dataclass(frozen=True)
class Entrant:
    """A server that can be started in some settings; ours has but one."""

    name: str
    title: str
    settings: tuple[Setting, ...]
    start: Callable[[Setting], AbstractContextManager[Server]]


def ours(name: str, exported: Exported, *arguments: str) -> Entrant:
    """Return cdm-serve as ``make serve`` starts it, or with further arguments."""
    return Entrant(name, name, (Setting(),), lambda _: served(exported, *arguments, name=name))


def also_ours(text: str) -> Entrant:
    """Return cdm-serve with another export: ``REPOSITORY``, or ``REPOSITORY:tiny``.

    Raises:
        BenchError: there is none, or none with a tiny decoder.
    """
    repository, _, decoder = text.partition(":")
    exported = find_export(Path(repository), None)
    manifest = exported.manifest
    name = f"{OURS}, {manifest.precision}"
    if not decoder:
        return ours(name, exported)
    if decoder not in manifest.decoders:
        raise BenchError(f"--also {text}: expected one of {', '.join(manifest.decoders)} behind :")
    return ours(f"{name} + {decoder} decoder", exported, "--decoder", decoder)


def peer(name: str, python: Path, student: Path, openvino: Path) -> Entrant:
    """Return one of ``PEERS``, run by the Python of their environment."""
    about = PEERS[name]
    module = f"benchmarks.serving.peers.{about.module}"
    models = [f"--openvino={openvino}"] if about.openvino else []

    def start(setting: Setting) -> AbstractContextManager[Server]:
        def command(port: int) -> list[str]:
            return [module, str(student.resolve()), str(port), *models, *setting.arguments()]

        return started(f"{about.title} ({setting})", command, python)

    return Entrant(name, about.title, about.settings, start)


def export_models(python: Path, student: Path, folder: Path) -> None:
    """Write the student's OpenVINO models to ``folder``, as optimum-intel exports them.

    Raises:
        BenchError: it cannot, or there is no such Python.
    """
    if not python.is_file():
        raise BenchError(
            f"--python: {python} is not there; the peers need an environment of their own: python "
            f"-m venv {python.parents[1]} && {python} -m pip install -r "
            f"{os.path.relpath(REQUIREMENTS)} && {python} -m pip uninstall -y torchvision"
        )
    module = "benchmarks.serving.peers.export_peer"
    command = [str(python), "-m", module, str(student.resolve()), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False
    )
    if done.returncode:
        raise BenchError(f"optimum-intel does not export {student}: {last_line(done.stderr)}")
