"""A client that costs little: one event loop, kept connections, no parsing until the load is over.

It takes some 0.6 ms of a core for a request.
"""

import asyncio
import base64
import json
import os
import random
import resource
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

import aiohttp

from benchmarks.errors import BenchError

EXPECTED = "expected the root of an image server such as http://127.0.0.1:8000"
JSON, PNG = "application/json", "image/png"
_TIMEOUT = 300.0
_KEPT = 2.0  # seconds without work; servers end a connection after five


@dataclass(frozen=True)
class Load:
    """Either ``clients``, each with one request at a time, or a Poisson ``rate`` a second."""

    clients: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.clients} clients" if self.rate is None else f"{self.rate:.4g} requests/s"


@dataclass(frozen=True)
class Answer:
    """One request from ``due`` to ``ended``, in seconds of one clock.

    ``status`` is None when no answer came, and ``error`` says why; ``partial`` is when the first
    preview came; ``retry_after`` are the seconds that the server asked for.
    """

    request: int
    due: float
    sent: float
    ended: float
    status: int | None
    content: bytes = b""
    partial: float | None = None
    retry_after: float | None = None
    error: str = ""

    @property
    def latency(self) -> float:
        """Seconds since it was due: a client that is late hides nothing."""
        return self.ended - self.due

    @cached_property
    def picture(self) -> bytes | None:
        """The file: the answer itself, or the first one in its JSON or in its last event."""
        if self.status != 200:
            return None
        if self.content.startswith(b"\x89PNG"):
            return self.content
        return _in_json(self.content)

    @property
    def problem(self) -> str:
        """What stands in place of a picture."""
        said = self.error or self.content[:300].decode(errors="replace") or "no picture in it"
        return f"{self.status or 'no answer'}: {said}"


def run_load(
    url: str,
    load: Load,
    body: Callable[[int], bytes],
    numbers: Iterator[int],
    seconds: float = float("inf"),
    *,
    accept: str = JSON,
    route: Callable[[int], str] = lambda number: "/v1/images/generations",
    patience: Callable[[int], float | None] = lambda number: None,
    polite: bool = False,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Send the requests with these numbers until they or the ``seconds`` are over.

    Requests already sent are waited for. A client whose request gets no answer waits a tenth of a
    second, so that a dead server is not asked in a busy loop.

    Args:
        url: root of the server; its key, if it wants one, is in ``OPENAI_API_KEY``.
        load: a closed loop or an open one.
        body: the JSON of a request.
        numbers: of the requests.
        seconds: for which new ones are sent.
        accept: the type that is asked for.
        route: where a request is sent.
        patience: after how many seconds the client gives a request up, if it does.
        polite: clients of a closed loop wait as long as they are told to.
        on_answer: is told of each, while the load goes on.

    Returns:
        The answers, in the order in which they came.

    Raises:
        BenchError: ``url`` is none.
    """
    root = _root(url)
    answers: list[Answer] = []

    async def run() -> None:
        async with aiohttp.ClientSession(
            headers={"content-type": JSON, "accept": accept, **_key()},
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT),
        ) as session:
            begin = time.perf_counter()

            async def ask(number: int, due: float | None = None) -> Answer:
                path, sent = root + route(number), body(number)
                answer = await _ask(session, path, number, sent, due, patience(number))
                answers.append(answer)
                on_answer(answer)
                return answer

            async def client() -> None:
                for number in numbers:
                    if time.perf_counter() >= begin + seconds:
                        break
                    answer = await ask(number)
                    if answer.status is None:
                        await asyncio.sleep(0.1)
                    elif polite and answer.retry_after:
                        await asyncio.sleep(answer.retry_after)

            async with asyncio.TaskGroup() as group:
                for _ in range(load.clients or 0):
                    group.create_task(client())
                if load.rate is not None:
                    draws, due = random.Random(0), begin
                    for number in numbers:
                        due += draws.expovariate(load.rate)
                        if due > begin + seconds:
                            break
                        await asyncio.sleep(max(0.0, due - time.perf_counter()))
                        group.create_task(ask(number, due))

    asyncio.run(run())
    return answers


async def _ask(
    session: aiohttp.ClientSession,
    path: str,
    number: int,
    body: bytes,
    due: float | None,
    patience: float | None,
) -> Answer:
    status: int | None = None
    content, error = b"", ""
    partial: float | None = None
    retry_after: float | None = None
    sent = time.perf_counter()
    try:
        async with asyncio.timeout(patience), session.post(path, data=body) as answer:
            if answer.content_type == "text/event-stream":
                async for chunk in answer.content.iter_any():
                    content += chunk
                    if partial is None and b"data:" in content:
                        partial = time.perf_counter()
            else:
                content = await answer.read()
            status = answer.status
            retry_after = float(answer.headers.get("retry-after", "nan"))
    except TimeoutError:
        error = "left" if patience is not None else "timed out"
    except aiohttp.ClientError as gone:
        error = str(gone) or type(gone).__name__
    return Answer(
        number,
        sent if due is None else due,
        sent,
        time.perf_counter(),
        status,
        content,
        partial,
        retry_after if retry_after == retry_after else None,
        error,
    )


def get(url: str, path: str) -> bytes | None:
    """Return what is at a path, or None if that is not to be had.

    Raises:
        BenchError: nobody answers, or the URL is none.
    """
    request = urllib.request.Request(_root(url) + path, headers=_key())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        raise BenchError(f"{url} does not answer ({error}); {EXPECTED}") from None


def cpu_seconds() -> float:
    """CPU time of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _root(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port
        valid = False
    if valid:
        return url.rstrip("/")
    raise BenchError(f"{url!r} is not a URL; {EXPECTED}")


def _key() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def _in_json(content: bytes) -> bytes | None:
    if content.startswith((b"event:", b"data:")):
        content = content.rpartition(b"data:")[2]
    try:
        answer = json.loads(content)
        if str(answer.get("type")).endswith(".completed"):
            answer = {"data": [answer]}
        return base64.b64decode(answer["data"][0]["b64_json"]) or None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
