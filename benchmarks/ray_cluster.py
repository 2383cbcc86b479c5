"""A Ray cluster of this machine's loopback addresses, and ``cdm-serve --ray`` on it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.endpoint import Endpoint
from benchmarks.errors import BenchError

RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray allows 5 s, which is not enough where many processes share few cores.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",
    # Ray listens on every address of the machine.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
_STORE = "--object-store-memory=100000000"
_START_SECONDS = 180.0


class Cluster:
    """A head without room for an engine, and nodes with room for one each."""

    def __init__(self, folder: Path) -> None:
        """Start the head.

        Raises:
            BenchError: it does not come up.
        """
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._cores = sorted(os.sched_getaffinity(0))
        self.address = f"{self._host(0)}:{free_port()}"
        options = ["--head", f"--port={self.address.split(':')[1]}", "--include-dashboard=false"]
        self.head = self._start(0, set(self._cores), [*options, "--num-cpus=0"])

    def grow_or_shrink(self, count: int) -> None:
        """Have so many nodes: each on a core of its own, the rest on all cores together.

        Raises:
            BenchError: a node does not come up.
        """
        while len(self.nodes) < count:
            number = len(self.nodes)
            own = {self._cores[number]} if number < len(self._cores) else set(self._cores)
            options = [f"--address={self.address}", "--num-cpus=1"]
            self.nodes.append(self._start(1 + number, own, options))
        while len(self.nodes) > count:
            _kill(self.nodes.pop())

    def end(self) -> None:
        """Kill all that is left of it."""
        for node in (*reversed(self.nodes), self.head):
            _kill(node)

    def _host(self, number: int) -> str:
        return f"127.0.{os.getpid() % 200 + 10}.{10 + number}"

    def _start(
        self, number: int, cores: set[int], options: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        host, output = self._host(number), self._folder / f"node-{number}"
        with output.open("wb") as file:
            node = subprocess.Popen(
                [str(RAY), "start", *options, f"--node-ip-address={host}", _STORE, "--block"],
                stdout=file,
                stderr=file,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
                # What the node starts inherits it; OpenVINO takes as many threads.
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        _wait(node, output, lambda: "--block" in output.read_text(errors="replace"))
        return node


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that is gone afterwards.

    Raises:
        BenchError: it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder:
        started = Cluster(Path(folder))
        try:
            yield started
        finally:
            started.end()


@contextmanager
def served(address: str, repository: Path, engines: int) -> Iterator[Endpoint]:
    """``cdm-serve --ray`` with exactly so many engines, all of them ready.

    Raises:
        BenchError: it does not come up.
    """
    port = free_port()
    command = [sys.executable, "-m", "cdm_serve", "--ray", "--port", str(port)]
    command += ["--engines", str(engines), "--engines-least", str(engines)]
    command += ["--model-repository", str(repository.resolve())]
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder, ExitStack() as stack:
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env=os.environ | ENVIRONMENT | {"RAY_ADDRESS": address},
            )
        stack.callback(_interrupt, process)
        endpoint = Endpoint(f"http://127.0.0.1:{port}")
        _wait(process, output, lambda: _ready(endpoint))
        yield endpoint


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(endpoint: Endpoint) -> bool:
    try:
        return endpoint.get("/readyz") is not None
    except BenchError:
        return False


def _wait(process: subprocess.Popen[bytes], output: Path, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not done():
        if process.poll() is not None or time.monotonic() > deadline:
            _kill(process)
            said = output.read_text(errors="replace").strip()[-500:]
            raise BenchError(f"{Path(str(process.args[0])).name} does not start: {said}")  # type: ignore[index]
        time.sleep(0.1)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
