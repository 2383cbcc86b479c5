"""The services of docker-compose.yml as processes of this machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, descendants, free_port

from cdm_serve.triton.wheel import find_wheel

Services = dict[str, dict[str, Any]]
# A model that is long busy with each heartbeat while a file is there, and hangs once in a step.
MODEL = """
import time
from pathlib import Path

from cdm_serve.engine import scheduler, triton_model
from cdm_serve.engine.pipeline import Pipeline

HERE = Path(__file__).parent
scheduler.STUCK_SECONDS = 1.0
velocity = Pipeline.velocity


def hang_once(self, *arguments):
    if (HERE / "hang").exists():
        (HERE / "hang").unlink()
        time.sleep(600)
    return velocity(self, *arguments)


Pipeline.velocity = hang_once


class TritonPythonModel(triton_model.TritonPythonModel):
    def _describe(self, name):
        end = time.monotonic() + 4.5
        while (HERE / "busy").exists() and time.monotonic() < end:
            pass
        return super()._describe(name)
"""


def with_trouble(repository: Path, folder: Path) -> Path:
    """Make a repository whose model is as above; where its files ``busy`` and ``hang`` may lie."""
    shutil.copytree(repository, folder)
    version = folder / "tiny" / "1"
    (version / "model.py").write_text(MODEL)
    return version


def services() -> Services:
    loaded: dict[str, Services] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded["services"]


@dataclass
class TritonService:
    """The ``triton`` service: its very command, with this machine's paths, ports and backend."""

    repository: Path
    folder: Path
    grpc: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    below: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wheel = find_wheel()
        replaced = {
            "tritonserver": str(wheel.server),
            "--model-repository=/models": f"--model-repository={self.repository}",
            "--grpc-port=8001": f"--grpc-port={self.grpc}",
            "--http-port=8000": f"--http-port={self.http}",
            "--model-config-name=gpu": "--model-config-name=cpu",
        }
        command = services()["triton"]["command"]
        assert replaced.keys() <= set(command)
        self.folder.mkdir()
        own = [
            f"--backend-directory={wheel.link_backend(self.folder)}",
            f"--backend-config=python,shm-region-prefix-name={self.folder.name}_{self.grpc}_",
            # The bundled Triton is old: it listens nowhere else.
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
        ]
        with (self.folder / "log").open("w") as log:
            # As under Docker's init the server is a child.
            init = ["sh", "-c", '"$@"; exit $?', "init"]
            self.process = subprocess.Popen(
                [*init, *(replaced.get(word, word) for word in command), *own],
                stdout=log,
                stderr=log,
                env=wheel.environment(),
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    def pid_of(self, name: str) -> int:
        (pid,) = [pid for pid, found in descendants(self.process.pid).items() if found == name]
        return pid

    def check(self) -> int:
        """The service's health check."""
        _, _, *words = services()["triton"]["healthcheck"]["test"]
        words[words.index("http://127.0.0.1:8000")] = f"http://127.0.0.1:{self.http}"
        words[words.index("1")] = str(self.process.pid)
        return subprocess.run([sys.executable, *words], timeout=60).returncode

    def wait_ready(self) -> None:
        url = f"http://127.0.0.1:{self.http}/v2/health/ready"
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            try:
                urllib.request.urlopen(url, timeout=5).close()
            except OSError:
                time.sleep(0.1)
            else:
                self.below = descendants(self.process.pid)
                return

    def kill(self) -> None:
        """As a machine that loses its power: at once, with all there is of it.

        Also a stub whose Triton was killed, which without a container around it may stay behind.
        """
        below = self.below | descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid, name in below.items():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    os.kill(pid, signal.SIGKILL)
        for segment in Path("/dev/shm").glob(f"{self.folder.name}_{self.grpc}_*"):
            segment.unlink(missing_ok=True)
