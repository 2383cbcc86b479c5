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
_GROUPS = Path("/sys/fs/cgroup/cpu")
_PERIOD = 10_000  # microseconds


class Cluster:
    """A head without room for an engine, and nodes with room for one each."""

    def __init__(self, folder: Path, nodes: int) -> None:
        """Start them all.

        Raises:
            BenchError: one does not come up, or the kernel grants no control groups.
        """
        self._folder = folder
        self._groups: list[Path] = []
        self._started: list[subprocess.Popen[bytes]] = []
        cores = sorted(os.sched_getaffinity(0))
        self.address = f"{_host(0)}:{free_port()}"
        try:
            port = self.address.split(":")[1]
            head = ["--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=0"]
            self._start(0, head, set(cores), None)
            for number in range(nodes):
                options = [f"--address={self.address}", "--num-cpus=1"]
                group = self._group(number)
                self._start(1 + number, options, {cores[number % len(cores)]}, group)
        except BaseException:
            self.end()
            raise

    def limit(self, share: float | None) -> None:
        """What each node may use of its core from now on; None is all of it."""
        for group in self._groups:
            quota = -1 if share is None else round(share * _PERIOD)
            (group / "cpu.cfs_quota_us").write_text(str(quota))

    def end(self) -> None:
        """Kill all of it."""
        for node in reversed(self._started):
            _kill(node)
        for group in self._groups:
            _remove(group)

    def _group(self, number: int) -> Path:
        group = _GROUPS / f"cdm-bench-{os.getpid()}-{number}"
        try:
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
        except OSError as error:
            raise BenchError(
                f"{group}: {error.strerror}; nodes are limited by control groups of version 1, "
                "which needs root"
            ) from None
        self._groups.append(group)
        return group

    def _start(
        self, number: int, options: Sequence[str], cores: set[int], group: Path | None
    ) -> None:
        host, output = _host(number), self._folder / f"node-{number}"

        def confine() -> None:
            """What the node starts inherits it; OpenVINO takes as many threads as cores."""
            os.sched_setaffinity(0, cores)
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        with output.open("wb") as file:
            node = subprocess.Popen(
                [str(RAY), "start", *options, f"--node-ip-address={host}", _STORE, "--block"],
                stdout=file,
                stderr=file,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
                preexec_fn=confine,
            )
        self._started.append(node)
        _wait(node, output, lambda: "--block" in output.read_text(errors="replace"))


@contextmanager
def cluster(nodes: int) -> Iterator[Cluster]:
    """A cluster that is gone afterwards.

    Raises:
        BenchError: it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder:
        started = Cluster(Path(folder), nodes)
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


def _host(number: int) -> str:
    return f"127.0.{os.getpid() % 200 + 10}.{10 + number}"


def _remove(group: Path) -> None:
    """It goes when the last of its processes has."""
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        with suppress(OSError):
            group.rmdir()
        time.sleep(0.1)


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
