"""More than the server can do, for minutes: what is taken in comes in time, the rest is told when.

Arrivals are an open loop: nobody waits for anybody.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp

from benchmarks.exported import Exported
from benchmarks.known import ROUTE, Known, growth, session
from benchmarks.leaving import memory_of
from benchmarks.served import Served, served
from benchmarks.tally import percentiles

QUEUE_SECONDS = 2.0
CAPACITY_SECONDS = 10.0
CLIENTS = 16
SAMPLES = 20


def run_overload(
    exported: Exported, times: float, seconds: float, on_second: Callable[[], None]
) -> dict[str, Any]:
    """Measure the capacity, then send ``times`` as much; latencies in milliseconds."""
    with served(exported, "--queue-seconds", str(QUEUE_SECONDS)) as server:
        result = asyncio.run(_run(server, times, seconds, on_second))
    return {**result, "exit_code": server.exit_code}


async def _run(
    server: Served, times: float, seconds: float, on_second: Callable[[], None]
) -> dict[str, Any]:
    known = Known(48)
    async with session(server.url) as connection:
        await known.learn(connection)
        capacity = await _capacity(connection, known)
        counts, latencies, memory = await _flood(
            server, connection, known, times * capacity, seconds, on_second
        )
    return {
        "capacity": round(capacity, 1),
        "rate": round(times * capacity, 1),
        "seconds": seconds,
        "queue_seconds": QUEUE_SECONDS,
        "answers": dict(counts),
        "accepted_ms": percentiles(latencies),
        "memory_mib": memory,
        "growth": growth(memory),
    }


async def _capacity(connection: aiohttp.ClientSession, known: Known) -> float:
    """Pictures a second when some are always waiting."""
    numbers, begin = itertools.count(), time.perf_counter()

    async def client() -> int:
        count = 0
        while time.perf_counter() < begin + CAPACITY_SECONDS:
            async with connection.post(ROUTE, data=known.body(next(numbers))) as answer:
                await answer.read()
                count += answer.status == 200
        return count

    counts = await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return sum(counts) / (time.perf_counter() - begin)


async def _flood(
    server: Served,
    connection: aiohttp.ClientSession,
    known: Known,
    rate: float,
    seconds: float,
    on_second: Callable[[], None],
) -> tuple[Counter[str], list[float], list[dict[str, float]]]:
    draws, counts, latencies = random.Random(0), Counter[str](), list[float]()
    begin = due = reported = time.perf_counter()
    memory: list[dict[str, float]] = []

    async def request(number: int, due: float) -> None:
        try:
            async with connection.post(ROUTE, data=known.body(number)) as answer:
                content = await answer.read()
                if answer.status == 200:
                    latencies.append(1e3 * (time.perf_counter() - due))
                    counts["right" if known.is_right(number, content) else "wrong"] += 1
                elif answer.status == 429 and "retry-after" in answer.headers:
                    counts["told when to come back"] += 1
                else:
                    counts[str(answer.status)] += 1
        except aiohttp.ClientError:
            counts["lost"] += 1

    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            due += draws.expovariate(rate)
            if due > begin + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(request(number, due))
            if time.perf_counter() - reported >= 1:
                reported += 1
                on_second()
            if len(memory) < SAMPLES * (due - begin) / seconds:
                memory.append(memory_of(server))
    return counts, latencies, memory
