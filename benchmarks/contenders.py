"""Servers that are measured one after the other, each in processes of its own."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.endpoint import Endpoint, picture
from benchmarks.errors import BenchError

_START = 300.0
_FIRST = b'{"prompt": "a fox in the snow", "seed": 0}'


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
        words = [f"batch {self.batch}"] if self.batch > 1 else []
        words += [f"{1000 * self.wait:g} ms"] if self.wait else []
        words += [f"{self.workers} workers"] if self.workers > 1 else []
        words += ["one at a time"] if self.lock else []
        return ", ".join([*words, "bf16" if self.bf16 else "float32"])


@dataclass
class Contender:
    """A running server."""

    name: str
    process: subprocess.Popen[bytes]
    endpoint: Endpoint
    output: Path
    seen: set[psutil.Process] = field(default_factory=set)

    def cpu_seconds(self) -> float:
        """What all its living processes have used so far."""
        total = 0.0
        for process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def end(self) -> None:
        """Ask it to stop, and end whatever is left of it."""
        processes = self._processes()
        self.process.terminate()
        _, left = psutil.wait_procs(processes, timeout=15)
        for process in left:
            process.kill()
        self.process.wait()

    def _processes(self) -> list[psutil.Process]:
        """The living ones, also those whose parent has ended."""
        with suppress(psutil.NoSuchProcess):  # it ended by itself
            self.seen.add(psutil.Process(self.process.pid))
        for process in list(self.seen):
            with suppress(psutil.NoSuchProcess):
                self.seen |= set(process.children(recursive=True))
        self.seen = {process for process in self.seen if process.is_running()}
        return list(self.seen)

    def wait_for_a_picture(self) -> None:
        """Return when it answers with one.

        Raises:
            BenchError: it ended, or took too long.
        """
        deadline, refused = time.monotonic() + _START, b""
        while time.monotonic() < deadline and self.process.poll() is None:
            connection = self.endpoint.connect()
            try:
                answer = self.endpoint.generate(connection, _FIRST)
                content = answer.read()
                if answer.status == 200 and picture(content):
                    return
                refused = content[:300]
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.2)
        raise BenchError(
            f"{self.name} does not start; it says: {refused.decode() or self._printed()}"
        )

    def _printed(self) -> str:
        lines = self.output.read_text(errors="replace").strip().splitlines() or ["nothing"]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines)[-1][:300]


@contextmanager
def started(name: str, command: Callable[[int], Sequence[str]]) -> Iterator[Contender]:
    """Start a server, given its command line by port; it draws when this returns.

    Raises:
        BenchError: it does not come up.
    """
    # How many threads to take is each server's own decision.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder, ExitStack() as stack:
        output, port = Path(folder) / "output", _free_port()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command(port)],
                stdout=file,
                stderr=file,
                cwd=folder,
                env=environment,
                start_new_session=True,  # what ends us must leave their end to us
            )
        contender = Contender(name, process, Endpoint(f"http://127.0.0.1:{port}"), output)
        stack.callback(contender.end)
        contender.wait_for_a_picture()
        yield contender


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
