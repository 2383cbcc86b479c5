"""A client that costs little: threads, kept connections, no parsing until the load is over.

Each thread takes the next request of one line, waits until it is due, and sends it. With no rate
the requests are due at once, which is a closed loop of as many clients as threads.
"""

from __future__ import annotations

import http.client
import itertools
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.answers import Answer
from benchmarks.endpoint import Endpoint, picture

_IN_FLIGHT = 256  # of an open loop; more than any server here lets wait


@dataclass(frozen=True)
class Load:
    """Either ``clients``, each with one request at a time, or a Poisson ``rate`` a second."""

    clients: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.clients} clients" if self.rate is None else f"{self.rate:.4g} requests/s"


@dataclass
class _Raw:
    request: int
    due: float
    sent: float
    ended: float
    status: int | None
    content: bytes
    partial: float | None

    def read(self) -> Answer:
        found = picture(self.content) if self.status == 200 else None
        error = "" if found else self.content[:500].decode(errors="replace")
        times = (self.due, self.sent, self.ended)
        return Answer(self.request, *times, self.status, found, self.partial, error)


def run_thin(
    endpoint: Endpoint,
    load: Load,
    body: Callable[[int], bytes],
    numbers: Iterator[int],
    seconds: float | None = None,
) -> list[Answer]:
    """Send the requests with these numbers until they or the ``seconds`` are over.

    Requests already sent are waited for. A client whose request gets no answer waits a tenth of a
    second, so that a dead server is not asked in a busy loop.
    """
    started = time.perf_counter()
    queue = _line(load, numbers, started, seconds)
    lock, answers = threading.Lock(), list[_Raw]()

    def client(connection: http.client.HTTPConnection) -> None:
        while True:
            with lock:
                number, due = next(queue, (None, 0.0))
            if number is None:
                break
            time.sleep(max(0.0, due - time.perf_counter()))
            content = body(number)
            sent = time.perf_counter()
            due = due or sent
            status: int | None = None
            partial: float | None = None
            try:
                answer = endpoint.generate(connection, content)
                lines = []
                for line in answer:  # events come line by line, other answers are one
                    lines.append(line)
                    if partial is None and line.startswith(b"data:"):
                        partial = time.perf_counter()
                answer.close()
                received, status = b"".join(lines), answer.status
            except (OSError, http.client.HTTPException) as error:
                received = (str(error) or type(error).__name__).encode()
                connection.close()
            ended = time.perf_counter()
            answers.append(_Raw(number, due, sent, ended, status, received, partial))
            if status is None:
                time.sleep(0.1)
        connection.close()

    connections = [endpoint.connect() for _ in range(load.clients or _IN_FLIGHT)]
    threads = [threading.Thread(target=client, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [raw.read() for raw in answers]


def cpu_seconds() -> float:
    """What this process has used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _line(
    load: Load, numbers: Iterator[int], started: float, seconds: float | None
) -> Iterator[tuple[int, float]]:
    """Numbers and when they are due; 0.0 is at once."""
    if load.rate is None:
        end = float("inf") if seconds is None else started + seconds
        yield from zip(
            itertools.takewhile(lambda _: time.perf_counter() < end, numbers), itertools.repeat(0.0)
        )
        return
    draws, due = random.Random(0), started
    for number in numbers:
        due += draws.expovariate(load.rate)
        if seconds is not None and due > started + seconds:
            return
        yield number, due
