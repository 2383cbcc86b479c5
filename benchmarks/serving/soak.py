"""``cdm-bench soak``: the server under clients that leave, too much work, and kills.

Each part starts a server of its own, and every picture is compared with the same one made alone.
"""

import argparse
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.errors import BenchError, picked
from benchmarks.figures import percentiles
from benchmarks.load.client import PNG, Answer, Load, get, run_load
from benchmarks.load.summary import elapsed
from benchmarks.progress import progress
from benchmarks.prompts import Requests
from benchmarks.record import Record
from benchmarks.serving.exported import Exported, find_export
from benchmarks.serving.servers import Server, served

CLIENTS = Load(clients=16)
REQUESTS = Requests(steps=(1, 2, 3, 4), known=48)
SAMPLES = 20  # of the memory
# Longer than most answers take, so that some who mean to leave are served all the same.
PATIENCE = 0.4
QUEUE_SECONDS = 2.0
CAPACITY_SECONDS = 10.0
VICTIMS = {"model": "triton_python_backend_stub", "Triton": "tritonserver"}
AROUND_KILL = 2.0  # seconds of work before and after one
LONGEST_AWAY = 120.0

Step = Callable[[], None]
Result = dict[str, Any]


def soak(arguments: argparse.Namespace, console: Console) -> int:
    """Run the parts that were asked for."""
    record = Record(arguments.out, "soak", ("aiohttp", "fastapi", "grpcio", "nvidia-pytriton"))
    exported = find_export(arguments.repository, arguments.model)
    requests, minutes, kills = arguments.requests, arguments.minutes, arguments.kills
    parts: dict[str, tuple[int, Callable[[Step], Result]]] = {
        "leaving": (requests, lambda step: leaving(exported, requests, arguments.leaving, step)),
        "overload": (
            SAMPLES,
            lambda step: overload(
                exported, arguments.times, minutes * 60, step, arguments.believed
            ),
        ),
        "kills": (kills * len(VICTIMS), lambda step: killed(exported, kills, step)),
    }
    result = {}
    for name in picked("--only", arguments.only, parts):
        total, run = parts[name]
        with progress(name, total, console) as step:
            result[name] = run(step)
        console.print(_table(name, result[name]))
        record.write(result)
    console.print(f"kept in {record.path}")
    return 0


class Tally:
    """Counts answers as they come, and looks at the server's memory now and then."""

    def __init__(self, server: Server) -> None:
        """Ask for every picture alone."""
        self.counts: Counter[str] = Counter()
        self.memory: list[dict[str, float]] = []
        self._server = server
        numbers = iter(range(REQUESTS.known or 0))
        answers = load(server, Load(clients=1), numbers)
        for answer in answers:
            if not answer.picture:
                raise BenchError(f"the server answered {answer.problem}, one at a time")
        self._right = {answer.request: answer.picture for answer in answers}

    def count(self, answer: Answer) -> None:
        """See what became of a request."""
        if answer.picture:
            right = answer.picture == self._right[answer.request % len(self._right)]
            self.counts["right" if right else "wrong"] += 1
        elif answer.status == 429 and answer.retry_after is not None:
            self.counts["told when to come back"] += 1
        elif answer.status is None:
            self.counts["left" if answer.error == "left" else "lost"] += 1
        else:
            self.counts[str(answer.status)] += 1

    def look(self) -> None:
        """Note the memory."""
        self.memory.append(self._server.memory_mib())

    def to_json(self) -> Result:
        """Return the counts, the memory, and by how much each part of it grew after a tenth."""
        settled, last = self.memory[len(self.memory) // 10], self.memory[-1]
        grown = {part: round(last[part] / size - 1, 4) for part, size in settled.items()}
        return {"answers": dict(self.counts), "growth": grown, "memory_mib": self.memory}


def load(
    server: Server, how: Load, numbers: Iterator[int], seconds: float = float("inf"), **more: Any
) -> list[Answer]:
    """Put a load on the server, which is asked for the picture itself."""
    return run_load(server.url, how, REQUESTS.body, numbers, seconds, accept=PNG, **more)


def leaving(exported: Exported, requests: int, share: float, step: Step) -> Result:
    """Many requests, of which a share leaves before the answer: what stays, and what grows."""
    draws, every = random.Random(0), max(1, requests // SAMPLES)
    with served(exported) as server:
        tally = Tally(server)

        def seen(answer: Answer) -> None:
            tally.count(answer)
            if answer.request % every == 0:
                tally.look()
            step()

        def patience(number: int) -> float | None:
            return draws.uniform(0.0, PATIENCE) if draws.random() < share else None

        load(server, CLIENTS, iter(range(requests)), patience=patience, on_answer=seen)
        found = {"requests": requests, "leaving": share, **tally.to_json()}
    complaints = [line for line in server.last_words.splitlines() if "Triton ended" in line]
    return {**found, "exit_code": server.exit_code, "complaints": complaints}


def overload(
    exported: Exported, times: float, seconds: float, step: Step, believed: float
) -> Result:
    """``times`` the capacity: what is taken in comes in time, the rest is told when to come.

    Also where the start-up measures ``believed`` times what executions take.
    """
    queue = ("--queue-seconds", str(QUEUE_SECONDS))
    with served(exported, *queue, believed=believed) as server:
        tally, numbers = Tally(server), itertools.count()
        full = [a for a in load(server, CLIENTS, numbers, CAPACITY_SECONDS) if a.picture]
        capacity = len(full) / elapsed(full)
        begin = time.perf_counter()

        def seen(answer: Answer) -> None:
            tally.count(answer)
            if time.perf_counter() - begin >= len(tally.memory) * seconds / SAMPLES:
                tally.look()
                step()

        answers = load(server, Load(rate=times * capacity), numbers, seconds, on_answer=seen)
        accepted = percentiles([1e3 * answer.latency for answer in answers if answer.picture])
        found = {
            "capacity": round(capacity, 1),
            "rate": round(times * capacity, 1),
            "seconds": seconds,
            "queue_seconds": QUEUE_SECONDS,
            "believed": believed,
            "accepted_ms": accepted,
            **tally.to_json(),
        }
    return {**found, "exit_code": server.exit_code}


def killed(exported: Exported, rounds: int, step: Step) -> Result:
    """Triton and its model killed under load: how long until pictures come again."""
    away: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
    begin = time.perf_counter()
    with served(exported) as server, ThreadPoolExecutor(1) as pool:
        start, tally, over = time.perf_counter() - begin, Tally(server), False
        numbers = itertools.takewhile(lambda _: not over, itertools.count())
        # Polite clients: asking all the time would only keep the models from loading.
        work = pool.submit(load, server, CLIENTS, numbers, polite=True, on_answer=tally.count)
        try:
            for victim, name in list(VICTIMS.items()) * rounds:
                time.sleep(AROUND_KILL)
                _kill(server, name)
                away[victim].append(round(_until_back(server), 2))
                step()
            time.sleep(AROUND_KILL)
        finally:
            over = True
        work.result()
        found = {"answers": dict(tally.counts), "seconds_away": away}
    return {"start_seconds": round(start, 2), **found, "exit_code": server.exit_code}


def _kill(server: Server, name: str) -> None:
    (victim,) = [process for _, process in server.processes() if process.name() == name]
    victim.send_signal(signal.SIGKILL)


def _until_back(server: Server) -> float:
    """Seconds from now until it was not ready and is again.

    Raises:
        BenchError: that does not come.
    """
    begin, away = time.perf_counter(), False
    while time.perf_counter() < begin + LONGEST_AWAY:
        ready = get(server.url, "/readyz") is not None
        if ready and away:
            return time.perf_counter() - begin
        away = away or not ready
        time.sleep(0.02)
    raise BenchError(f"the server was not ready again {LONGEST_AWAY:g} s after the kill")


def _table(name: str, result: Result) -> Table:
    table = Table("", "", title=name, show_header=False)
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{part} {each}" for part, each in value.items())
        if key != "memory_mib":
            table.add_row(key.replace("_", " "), str(value))
    return table
