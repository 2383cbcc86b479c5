"""Many requests, of which a share leaves before the answer: what stays, and what grows."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp

from benchmarks.exported import Exported
from benchmarks.known import ROUTE, Known, growth, session
from benchmarks.served import Served, served

CLIENTS = 16
SAMPLES = 20
# Longer than most answers take, so that some who mean to leave are served all the same.
PATIENCE = 0.4


def run_leaving(
    exported: Exported, requests: int, leaving: float, on_answer: Callable[[], None]
) -> dict[str, Any]:
    """Return counts of answers, memory by part of the server in MiB, and how it ended."""
    with served(exported) as server:
        result = asyncio.run(_run(server, requests, leaving, on_answer))
    complaints = [line for line in server.last_words.splitlines() if "Triton ended" in line]
    return {**result, "exit_code": server.exit_code, "complaints": complaints}


async def _run(
    server: Served, requests: int, leaving: float, on_answer: Callable[[], None]
) -> dict[str, Any]:
    known, numbers, draws = Known(48), itertools.count(), random.Random(0)
    counts: Counter[str] = Counter()
    memory, interval = [], max(1, requests // SAMPLES)

    async def client(connection: aiohttp.ClientSession) -> None:
        while (number := next(numbers)) < requests:
            limit = draws.uniform(0.0, PATIENCE) if draws.random() < leaving else None
            try:
                async with asyncio.timeout(limit):
                    counts[await _ask(connection, known, number)] += 1
            except TimeoutError:
                counts["left"] += 1
            except aiohttp.ClientError:
                counts["lost"] += 1
            if number % interval == 0:
                memory.append(memory_of(server))
            on_answer()

    async with session(server.url) as connection:
        await known.learn(connection)
        await asyncio.gather(*(client(connection) for _ in range(CLIENTS)))
    return {
        "requests": requests,
        "leaving": leaving,
        "answers": dict(counts),
        "memory_mib": memory,
        "growth": growth(memory),
    }


async def _ask(connection: aiohttp.ClientSession, known: Known, number: int) -> str:
    async with connection.post(ROUTE, data=known.body(number)) as answer:
        content = await answer.read()
        if answer.status != 200:
            return str(answer.status)
        return "right" if known.is_right(number, content) else "wrong"


def memory_of(server: Served) -> dict[str, float]:
    """Resident memory by part, in MiB."""
    parts: Counter[str] = Counter()
    for part, process in server.parts():
        parts[part] += process.memory_info().rss
    return {part: round(size / 2**20, 1) for part, size in parts.items()}
