"""Start and stop the bundled tritonserver."""

import contextlib
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from cdm_serve.repository import model_folders
from cdm_serve.triton.guard import FOLDER_PREFIX, SHM_PREFIX
from cdm_serve.triton.processes import alive, children
from cdm_serve.triton.protocol import WARM_UP_SECONDS
from cdm_serve.triton.wheel import TritonWheel

logger = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard.py")
HOST = "127.0.0.1"
SAFE = re.compile(r"[A-Za-z0-9/._-]+")
EXIT_SECONDS = 5


class TritonProcess:
    """One tritonserver with a port, a working folder and a shared-memory prefix of its own."""

    def __init__(
        self,
        wheel: TritonWheel,
        repository: Path,
        log: Path | None = None,
        warm_up_seconds: float | None = None,
        device: str | None = None,
    ) -> None:
        """Start it; it is ready when its gRPC health says so.

        Args:
            wheel: where it is.
            repository: all its models are loaded.
            log: to which what it prints is appended; else to a file that goes when the server does.
            warm_up_seconds: instead of the models' own.
            device: the GPU that it sees, as the only one.
        """
        self.folder = _working_folder()
        models = self.folder / "models"
        models.symlink_to(repository.resolve())
        self.port = _free_port()
        prefix = f"{SHM_PREFIX}{secrets.token_hex(4)}_"
        command = [
            str(wheel.server),
            f"--model-repository={models}",
            # By name: left to itself Triton would also load what an export has not finished.
            "--model-control-mode=explicit",
            *(f"--load-model={model.name}" for model in model_folders(repository)),
            f"--backend-directory={wheel.link_backend(self.folder)}",
            # This Triton predates security fixes: loopback only, and no door that is not used.
            f"--grpc-address={HOST}",
            f"--grpc-port={self.port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--disable-auto-complete-config",
            # One model that does not load must not keep the others from a restart.
            "--exit-on-error=false",
            "--strict-readiness=false",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--backend-config=python,shm-default-byte-size=4194304",
            "--backend-config=python,shm-growth-byte-size=1048576",
            f"--backend-config=python,shm-region-prefix-name={prefix}",
        ]
        environment = wheel.environment()
        if warm_up_seconds is not None:
            environment |= {WARM_UP_SECONDS: str(warm_up_seconds)}
        if device is not None:
            environment |= {"CUDA_VISIBLE_DEVICES": device}
        log = log or self.folder / "triton.log"
        # Opened now: the guard removes the folder when the server has ended.
        self._log = log.open("a+b")
        self._log_begin = self._log.tell()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", GUARD, self.folder, prefix, str(EXIT_SECONDS + 1), *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )

    @property
    def address(self) -> str:
        """The gRPC endpoint."""
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server process is there; says nothing of its models."""
        return self._guard.poll() is None

    def lost(self) -> set[int]:
        """Processes of models that have ended, and that the server has not collected."""
        servers = children(self._guard.pid)
        return {pid for server in servers for pid in children(server) if not alive(pid)}

    def log(self) -> str:
        """What the server has printed so far."""
        self._log.seek(self._log_begin)
        return self._log.read().decode("utf-8", errors="replace")

    def close(self) -> None:
        """Let it finish what it has, then leave nothing of it; waits."""
        code = self._end()
        if code:
            logger.warning("Triton ended with code %d instead of 0", code)

    def kill(self) -> None:
        """Leave nothing of it, at once; waits."""
        self._guard.terminate()
        self._end()

    def _end(self) -> int:
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        code = self._guard.wait()
        self._log.close()
        return code


def errors_in(log: str) -> str:
    """The last lines of Triton's log without its tables and notes."""
    lines = [line for line in log.splitlines() if line and line[0] not in "I+|"]
    return "\n".join(lines[-20:] or log.splitlines()[-20:])


def _working_folder() -> Path:
    """A new one, of letters that a shell leaves alone: Triton gives a model's path to one unquoted.

    In the folder for temporary files, unless that has others. Models are reached by a link here.
    """
    folders = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    base = next(each for each in folders if SAFE.fullmatch(each) and os.access(each, os.W_OK))
    return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=base))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
