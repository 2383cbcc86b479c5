"""The real ``cdm-serve`` in a process of its own, and a client that costs as little as it can.

The client shares the cores with the server. aiohttp takes some 0.2 ms of a core for a request,
httpx about 2 ms.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.errors import BenchError
from benchmarks.exported import Exported
from benchmarks.loops import Load
from benchmarks.prompts import PROMPTS, prompt
from benchmarks.tally import Tally
from cdm_serve.triton.client import TritonClient

FORMS = {"json": "application/json", "png": "image/png"}
COMMAND = (sys.executable, "-m", "cdm_serve", "--port", "0")
GRPC_PORT = "--grpc-port="
READY_SECONDS = 300.0
PARTS = {"tritonserver": "triton", "triton_python_backend_stub": "engine"}


class Served:
    """A running server of one model; its CPU time is read from the process table.

    When it was stopped, ``exit_code`` and ``last_words`` say how, and all it has written.
    """

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        """Wait until it is ready.

        Raises:
            BenchError: it ended, or took too long.
        """
        self.process = process
        self.exit_code: int | None = None
        self.last_words = ""
        self._output = output
        self._numbers = itertools.count()
        self.url = asyncio.run(self._until_ready())

    def run(
        self, load: Load, seconds: float, form: str = "json", *, fresh: bool = False
    ) -> dict[str, Any]:
        """Put a load on it for a time, see ``loops``; with prompts never seen, if ``fresh``.

        Raises:
            BenchError: an answer was no picture, or none came.
        """
        before = self._cpu_seconds()
        try:
            tally = asyncio.run(self._loop(load, seconds, form, fresh))
        except aiohttp.ClientError as error:
            raise BenchError(f"cdm-serve does not answer ({error}): {self._printed()}") from None
        spent = {name: after - before[name] for name, after in self._cpu_seconds().items()}
        each = {name: round(1e3 * value / tally.answered, 3) for name, value in spent.items()}
        return {**tally.to_json(), "cpu_milliseconds": each}

    def costs(self, model: str) -> dict[str, Any]:
        """What the engine measured of itself at start, asked of Triton; see ``protocol``."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            for argument in process.cmdline():
                if argument.startswith(GRPC_PORT):
                    return asyncio.run(_costs(f"127.0.0.1:{argument[len(GRPC_PORT) :]}", model))
        raise BenchError("cdm-serve has no Triton")

    async def _loop(self, load: Load, seconds: float, form: str, fresh: bool) -> Tally:
        def body(steps: int) -> bytes:
            number = next(self._numbers)
            text = f"{prompt(number)} {number}" if fresh else PROMPTS[number % len(PROMPTS)]
            asked = {"prompt": text, "seed": number, "num_inference_steps": steps}
            return json.dumps(asked).encode()

        headers = {"content-type": "application/json", "accept": FORMS[form]}
        async with aiohttp.ClientSession(
            self.url, headers=headers, connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            tally = Tally(seconds)

            async def client(steps: int) -> None:
                while tally.open:
                    sent = time.perf_counter()
                    await _picture(session, body(steps))
                    tally.add(steps, sent)

            async def request(after: float, steps: int) -> None:
                due = tally.begin + after
                await asyncio.sleep(due - time.perf_counter())
                await _picture(session, body(steps))
                tally.add(steps, due, planned=True)

            works = [client(each) if isinstance(each, int) else request(*each) for each in load]
            await asyncio.gather(*works)
        return tally

    async def _until_ready(self) -> str:
        deadline = time.monotonic() + READY_SECONDS
        port = 0
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    break
                port = port or _listening(self.process.pid)
                try:
                    async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                        if answer.status == 200:
                            return f"http://127.0.0.1:{port}"
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        raise BenchError(f"cdm-serve did not become ready: {self._printed()}")

    def _printed(self) -> str:
        lines = self.printed.split("\n")
        return " ".join(line.strip() for line in lines[-4:] if line.strip())

    def _cpu_seconds(self) -> dict[str, float]:
        """So far, by part: gateway, triton, engine (its python process) and the client itself."""
        seconds = {"client": time.process_time(), "gateway": 0.0, "triton": 0.0, "engine": 0.0}
        for part, process in self.parts():
            times = process.cpu_times()
            seconds[part] += times.user + times.system
        return seconds

    def parts(self) -> list[tuple[str, psutil.Process]]:
        """Its processes, each as a part of gateway, triton (with its guard) or engine."""
        gateway = psutil.Process(self.process.pid)
        named = [("gateway", gateway)]
        for process in gateway.children(recursive=True):
            name = Path(process.cmdline()[0]).name
            named.append((PARTS.get(name, "triton"), process))
        return named

    @property
    def printed(self) -> str:
        """What it has written so far."""
        return self._output.read_text(encoding="utf-8")


async def _picture(session: aiohttp.ClientSession, data: bytes) -> None:
    async with session.post("/v1/images/generations", data=data) as answer:
        content = await answer.read()
        if answer.status != 200:
            raise BenchError(f"cdm-serve answered {answer.status}: {content[:300]!r}")


async def _costs(address: str, model: str) -> dict[str, Any]:
    client = TritonClient(address)
    try:
        costs: dict[str, Any] = (await client.describe(model))["card"]["costs"]
    finally:
        await client.close()
    return costs


@contextmanager
def served(exported: Exported, *arguments: str) -> Iterator[Served]:
    """Start a server of one model on a free port, and stop it afterwards.

    ``arguments`` are further ones of ``cdm-serve``.
    """
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        repository.mkdir()
        # The others would be loaded and warmed up for nothing.
        (repository / exported.folder.name).symlink_to(exported.folder.resolve())
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*COMMAND, "--model-repository", str(repository), *arguments],
                stdout=file,
                stderr=file,
                cwd=Path(__file__).parents[1],
            )
        try:
            server = Served(process, output)
            yield server
        finally:
            process.terminate()
            process.wait()
        server.exit_code, server.last_words = process.returncode, server.printed


def _listening(pid: int) -> int:
    """The port that a process listens on, 0 as long as there is none."""
    for connection in psutil.Process(pid).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            port: int = connection.laddr.port
            return port
    return 0
