"""A bounded load on an OpenAI-compatible image endpoint.

Closed loop: each of ``concurrency`` clients sends its next request when the last one is answered,
so a slow server is asked less often. Read the latencies together with the throughput.
"""

import asyncio
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import httpx
import numpy as np

from benchmarks.errors import BenchError

PROMPTS = (
    "a fox in the snow",
    "an owl on the left on a purple background",
    "a large pizza on a teal background",
    "a cat left of a dog on a yellow background",
)


@dataclass(frozen=True)
class Load:
    """What to send; ``steps`` of None leaves the number to the server."""

    url: str
    requests: int = 100
    concurrency: int = 4
    steps: int | None = None
    model: str | None = None
    timeout: float = 60.0

    def body(self, index: int) -> dict[str, object]:
        """Return the JSON of request ``index``: the prompts in turn, each with its own seed."""
        body: dict[str, object] = {"prompt": PROMPTS[index % len(PROMPTS)], "seed": index}
        if self.steps is not None:
            body["num_inference_steps"] = self.steps
        if self.model is not None:
            body["model"] = self.model
        return body


@dataclass(frozen=True)
class LoadResult:
    """Latencies in milliseconds of the requests that were answered with a picture."""

    load: Load
    machine: str
    answered: int
    failed: int
    seconds: float
    images_per_second: float
    latency_ms: dict[str, float]

    def json(self) -> str:
        """Return the result as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


async def run_load(load: Load, on_answer: Callable[[], None]) -> LoadResult:
    """Send the load and measure it; ``on_answer`` is called after every request.

    Raises:
        BenchError: the endpoint cannot be reached, or no request was answered with a picture.
    """
    latencies: list[float] = []
    failures: list[str] = []
    waiting = iter(range(load.requests))

    async def client(connection: httpx.AsyncClient) -> None:
        for index in waiting:
            started = time.perf_counter()
            answer = await connection.post("/v1/images/generations", json=load.body(index))
            elapsed = time.perf_counter() - started
            if _has_picture(answer):
                latencies.append(1000 * elapsed)
            else:
                failures.append(answer.text)
            on_answer()

    try:
        async with httpx.AsyncClient(base_url=load.url, timeout=load.timeout) as connection:
            started = time.perf_counter()
            await asyncio.gather(*(client(connection) for _ in range(load.concurrency)))
            seconds = time.perf_counter() - started
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BenchError(
            f"{load.url} does not answer ({error or type(error).__name__}); "
            "expected the root of an image server such as http://127.0.0.1:8000"
        ) from None
    if not latencies:
        raise BenchError(
            f"all {load.requests} requests failed; the first answer: {failures[0][:500]}"
        )
    percentiles = np.percentile(latencies, (50, 90, 95, 99))
    return LoadResult(
        load=load,
        machine=f"{platform.machine()}, {platform.system()} {platform.release()}",
        answered=len(latencies),
        failed=len(failures),
        seconds=round(seconds, 3),
        images_per_second=round(len(latencies) / seconds, 2),
        latency_ms={
            name: round(float(value), 2)
            for name, value in zip(("p50", "p90", "p95", "p99"), percentiles, strict=True)
        },
    )


def _has_picture(answer: httpx.Response) -> bool:
    try:
        return bool(answer.is_success and answer.json()["data"][0]["b64_json"])
    except (ValueError, LookupError, TypeError):  # a success, but not of an image server
        return False
