"""Servers in processes of their own, measured from outside."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.errors import BenchError
from benchmarks.load.client import Load, run_load
from benchmarks.serving.exported import Exported

_START = 900.0  # seconds; a model of billions of weights is measured for minutes
_STOP = 30.0
_FIRST = b'{"prompt": "a fox in the snow", "seed": 0}'
_MODEL = """
from cdm_serve.engine import triton_model

measure = triton_model.measure


def misjudged(*arguments):
    costs, batches = measure(*arguments)
    for curves in costs._curves.values():
        for size, curve in curves.items():
            curves[size] = curve.scaled({believed})
    return costs, batches


triton_model.measure = misjudged
TritonPythonModel = triton_model.TritonPythonModel
"""
# The parts of a cdm-serve by the names of their programs; its own process is the gateway.
_PARTS = {"tritonserver": "triton", "triton_python_backend_stub": "engine"}


@dataclass
class Server:
    """A running server; once it has ended, how, and all that it has written."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    output: Path
    exit_code: int | None = None
    last_words: str = ""
    seen: set[psutil.Process] = field(default_factory=set)

    def cpu_seconds(self) -> dict[str, float]:
        """What its living processes have used so far, by part."""
        return self._sums(lambda process: sum(process.cpu_times()[:2]))

    def memory_mib(self) -> dict[str, float]:
        """Resident memory by part."""
        return self._sums(lambda process: process.memory_info().rss / 2**20)

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """The living ones, each as a part: gateway, triton (with its guard) or engine.

        Those whose parent has ended are among them.
        """
        with suppress(psutil.NoSuchProcess):  # it ended by itself
            self.seen.add(psutil.Process(self.process.pid))
        for process in list(self.seen):
            with suppress(psutil.NoSuchProcess):
                self.seen |= set(process.children(recursive=True))
        self.seen = {process for process in self.seen if process.is_running()}
        return [(self._part(process), process) for process in self.seen]

    @property
    def printed(self) -> str:
        """What it has written so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """Ask it to stop, and end whatever is left of it."""
        processes = [process for _, process in self.processes()]
        self.process.terminate()
        _, left = psutil.wait_procs(processes, timeout=_STOP)
        for process in left:
            process.kill()
        self.exit_code, self.last_words = self.process.wait(), self.printed

    def wait_for_a_picture(self) -> None:
        """Return when it answers with one.

        Raises:
            BenchError: it ended, or took too long.
        """
        deadline, said = time.monotonic() + _START, ""
        while time.monotonic() < deadline and self.process.poll() is None:
            (answer,) = run_load(self.url, Load(clients=1), lambda _: _FIRST, iter([0]))
            if answer.picture:
                return
            said = answer.problem if answer.status else said
            time.sleep(0.1)
        raise BenchError(f"{self.name} does not start; it says: {said or last_line(self.printed)}")

    def _part(self, process: psutil.Process) -> str:
        if process.pid == self.process.pid:
            return "gateway"
        with suppress(psutil.Error):
            return _PARTS.get(process.name(), "triton")
        return "triton"

    def _sums(self, figure: Callable[[psutil.Process], float]) -> dict[str, float]:
        sums: defaultdict[str, float] = defaultdict(float)
        for part, process in self.processes():
            with suppress(psutil.NoSuchProcess):
                sums[part] += figure(process)
        return {part: round(value, 3) for part, value in sums.items()}


@contextmanager
def started(
    name: str, command: Callable[[int], Sequence[str]], python: Path = Path(sys.executable)
) -> Iterator[Server]:
    """Start ``python -m COMMAND``, given by port; it draws when this returns, and ends afterwards.

    Raises:
        BenchError: it does not come up.
    """
    # How many threads to take is each server's own decision.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder:
        output, port = Path(folder) / "output", _free_port()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [python.absolute(), "-m", *command(port)],  # resolved, it were no venv's
                stdout=file,
                stderr=file,
                cwd=folder,
                env=environment,
                start_new_session=True,  # what ends us must leave their end to us
            )
        server = Server(name, process, f"http://127.0.0.1:{port}", output)
        try:
            server.wait_for_a_picture()
            yield server
        finally:
            server.end()


@contextmanager
def served(
    exported: Exported, *arguments: str, name: str = "cdm-serve", believed: float = 1.0
) -> Iterator[Server]:
    """Start the real ``cdm-serve`` of one model; ``arguments`` are further ones of it.

    Its start-up measures ``believed`` times what executions take.
    """
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder:
        # The others would be loaded and warmed up for nothing.
        model = Path(folder) / exported.folder.name
        if believed == 1.0:
            model.symlink_to(exported.folder.resolve())
        else:
            _misjudged(exported.folder.resolve(), model, believed)
        where = ("--model-repository", folder, *arguments)
        with started(name, lambda port: ["cdm_serve", "--port", str(port), *where]) as server:
            yield server


def _misjudged(folder: Path, model: Path, believed: float) -> None:
    """The same model, but for what it measures."""
    (model / "1").mkdir(parents=True)
    for path in (*folder.glob("*"), *folder.glob("1/*")):
        if path.name not in ("1", "model.py"):
            (model / path.relative_to(folder)).symlink_to(path)
    (model / "1" / "model.py").write_text(_MODEL.format(believed=believed))


def last_line(text: str) -> str:
    """Return the last line that names an error, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["nothing"])[-1][:300]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
