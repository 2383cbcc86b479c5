"""``cdm-bench mlperf``: SingleStream, Server and Offline as MLPerf's own load generator has them.

Shorter than MLPerf's rules ask for, with our model and requests: a figure in its terms, not a
submission.
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
from rich.console import Console
from rich.table import Table

from benchmarks.endpoint import Endpoint, picture
from benchmarks.errors import BenchError
from benchmarks.prompts import Requests
from benchmarks.record import write_result

_LIBRARY = 64  # different requests
_IN_FLIGHT = 32  # Offline has everything due at once, which a server may refuse
_SCENARIOS = ("SingleStream", "Server", "Offline")
_P = (50, 90, 99)
_SHOWN = {
    "SingleStream": "90.0th percentile latency (ns)",
    "Server": "Completed samples per second",
    "Offline": "Samples per second",
}


class Answering:
    """Threads that send what the generator issues, and tell it when each answer is there."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Start them."""
        self.failed: list[int] = []
        self._endpoint = endpoint
        self._line: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._client) for _ in range(_IN_FLIGHT)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: list[Any]) -> None:
        """Take samples from the generator, and return at once."""
        for sample in samples:
            self._line.put(sample)

    def end(self) -> None:
        """Wait for the threads."""
        for _ in self._threads:
            self._line.put(None)
        for thread in self._threads:
            thread.join()

    def _client(self) -> None:
        connection = self._endpoint.connect()
        while (sample := self._line.get()) is not None:
            try:
                body = json.dumps(Requests().body(sample.index)).encode()
                answer = self._endpoint.generate(connection, body)
                right = answer.status == 200 and picture(answer.read())
            except (OSError, http.client.HTTPException):
                right = None
            if not right:
                self.failed.append(sample.index)
                connection.close()
            # The generator waits for every sample, and measures when it is told.
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])
        connection.close()


def mlperf(arguments: argparse.Namespace, console: Console) -> int:
    """Run the scenarios one after another."""
    endpoint = Endpoint(arguments.url.rstrip("/"))
    endpoint.get("/v1/models")  # says so if nobody answers
    results = {}
    table = Table(title=f"{endpoint.url}, MLPerf's load generator")
    for name in ("scenario", "result", "p50 ms", "p90 ms", "p99 ms", "failed", ""):
        table.add_column(name, justify="right" if name else "left")
    with console.status("") as status:
        for scenario in _SCENARIOS:
            status.update(f"{scenario}, {arguments.seconds:g} s")
            result, failed = _run(endpoint, scenario, arguments)
            results[scenario] = {**result, "failed": failed}
            table.add_row(
                scenario,
                _figure(scenario, result),
                *(f"{float(result[f'{p}.00 percentile latency (ns)']) / 1e6:.1f}" for p in _P),
                str(failed),
                result["Result is"],
            )
            write_result(arguments.out, {"scenarios": results}, ["mlcommons-loadgen"])
    console.print(table)
    return 0


def _figure(scenario: str, result: dict[str, str]) -> str:
    value = float(result[_SHOWN[scenario]])
    return f"{value / 1e6:.1f} ms" if scenario == "SingleStream" else f"{value:.1f} images/s"


def _run(
    endpoint: Endpoint, scenario: str, arguments: argparse.Namespace
) -> tuple[dict[str, str], int]:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = settings.max_duration_ms = int(1000 * arguments.seconds)
    settings.min_query_count = 1
    settings.server_target_qps = arguments.rate
    settings.server_target_latency_ns = int(1e6 * arguments.slo)
    settings.offline_expected_qps = arguments.rate
    answering = Answering(endpoint)
    system = lg.ConstructSUT(answering.issue, lambda: None)
    library = lg.ConstructQSL(_LIBRARY, _LIBRARY, lambda _: None, lambda _: None)
    try:
        with tempfile.TemporaryDirectory(prefix="cdm-bench-") as folder:
            log = lg.LogSettings()
            log.log_output.outdir = folder
            log.log_output.copy_summary_to_stdout = False
            lg.StartTestWithLogSettings(system, library, settings, log, "audit.config")
            summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    finally:
        answering.end()
        lg.DestroyQSL(library)
        lg.DestroySUT(system)
    pairs = (line.split(":", 1) for line in summary.splitlines() if ":" in line)
    result = {name.strip(): value.strip() for name, value in pairs}
    if _SHOWN[scenario] not in result:
        raise BenchError(f"the load generator has measured nothing: {summary[:300]}")
    return result, len(answering.failed)
