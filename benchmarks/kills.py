"""Triton and its model killed under load: how long until pictures come again, and what was lost."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp

from benchmarks.errors import BenchError
from benchmarks.exported import Exported
from benchmarks.known import ROUTE, Known, session
from benchmarks.served import Served, served

CLIENTS = 16
VICTIMS = {"model": "triton_python_backend_stub", "Triton": "tritonserver"}
SECONDS_BEFORE = 2.0
SECONDS_AFTER = 2.0
LONGEST_SECONDS = 120.0


def run_kills(exported: Exported, rounds: int, on_kill: Callable[[], None]) -> dict[str, Any]:
    """Kill each in turn, ``rounds`` times; seconds without readiness, and counts of answers."""
    begin = time.perf_counter()
    with served(exported) as server:
        loading = time.perf_counter() - begin
        result = asyncio.run(_run(server, rounds, on_kill))
    return {"start_seconds": round(loading, 2), **result, "exit_code": server.exit_code}


async def _run(server: Served, rounds: int, on_kill: Callable[[], None]) -> dict[str, Any]:
    known, numbers, counts = Known(48), itertools.count(), Counter[str]()
    away: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
    over = asyncio.Event()

    async def client(connection: aiohttp.ClientSession) -> None:
        while not over.is_set():
            number = next(numbers)
            try:
                async with connection.post(ROUTE, data=known.body(number)) as answer:
                    content = await answer.read()
            except aiohttp.ClientError:
                counts["lost"] += 1
            else:
                right = answer.status == 200 and known.is_right(number, content)
                wrong = "wrong" if answer.status == 200 else str(answer.status)
                counts["right" if right else wrong] += 1
                # As clients do; asking all the time would only keep the models from loading.
                await asyncio.sleep(float(answer.headers.get("retry-after", "0")))

    async with session(server.url) as connection:
        await known.learn(connection)
        clients = [asyncio.create_task(client(connection)) for _ in range(CLIENTS)]
        for victim, name in list(VICTIMS.items()) * rounds:
            await asyncio.sleep(SECONDS_BEFORE)
            _kill(server, name)
            away[victim].append(round(await _until_back(connection), 2))
            on_kill()
        await asyncio.sleep(SECONDS_AFTER)
        over.set()
        await asyncio.gather(*clients)
    return {"answers": dict(counts), "seconds_away": away}


def _kill(server: Served, name: str) -> None:
    (victim,) = [process for _, process in server.parts() if process.name() == name]
    victim.send_signal(signal.SIGKILL)


async def _until_back(connection: aiohttp.ClientSession) -> float:
    """Seconds from now until it was not ready and is again.

    Raises:
        BenchError: that does not come.
    """
    begin, seen = time.perf_counter(), False
    while time.perf_counter() < begin + LONGEST_SECONDS:
        async with connection.get("/readyz") as answer:
            if answer.status == 200 and seen:
                return time.perf_counter() - begin
            seen = seen or answer.status != 200
        await asyncio.sleep(0.02)
    raise BenchError(f"the server was not ready again {LONGEST_SECONDS:g} s after the kill")
