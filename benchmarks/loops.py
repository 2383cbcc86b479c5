"""Clients of an engine in this process, the cheapest there are."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

from benchmarks.prompts import PROMPTS
from benchmarks.tally import Tally
from cdm_serve.engine.job import EngineError, Job, Partial, Picture
from cdm_serve.engine.scheduler import Scheduler

# Of a closed loop the steps that each client asks for; of an open one the arrivals, in seconds and
# steps.
Load = Sequence[int] | Sequence[tuple[float, int]]


def run_load(engine: Scheduler, size: str, load: Load, seconds: float) -> Tally:
    """Either loop."""
    steps = [each for each in load if isinstance(each, int)]
    if steps:
        return closed_loop(engine, size, steps, seconds)
    arrivals = [(each[0], each[1]) for each in load if not isinstance(each, int)]
    return open_loop(engine, size, arrivals, seconds)


def closed_loop(engine: Scheduler, size: str, steps: Sequence[int], seconds: float) -> Tally:
    """One client for each of ``steps``, who asks again as soon as he is answered.

    Raises:
        EngineError: a picture was not made.
    """
    tally = Tally(seconds)
    numbers = itertools.count()
    lock = threading.Lock()
    done = threading.Semaphore(0)
    failures: list[EngineError] = []

    def ask(client: int) -> None:
        number = next(numbers)
        job = Job(PROMPTS[number % len(PROMPTS)], number, steps[client], size)
        sent = time.perf_counter()

        def answer(what: Partial | Picture | EngineError) -> None:
            with lock:
                if isinstance(what, EngineError):
                    failures.append(what)
                else:
                    tally.add(job.steps, sent)
                more = tally.open and not failures
            if more:
                ask(client)
            else:
                done.release()

        engine.submit(str(number), job, answer)

    for client in range(len(steps)):
        ask(client)
    for _ in steps:
        done.acquire()
    if failures:
        raise failures[0]
    return tally


def open_loop(
    engine: Scheduler, size: str, arrivals: Sequence[tuple[float, int]], seconds: float
) -> Tally:
    """Requests of so many steps at their times, whatever has become of those before.

    Latency counts from when a request was due.

    Raises:
        EngineError: a picture was not made.
    """
    tally = Tally(seconds)
    lock = threading.Lock()
    done = threading.Semaphore(0)
    failures: list[EngineError] = []
    for number, (time_due, steps) in enumerate(arrivals):
        due = tally.begin + time_due
        time.sleep(max(0.0, due - time.perf_counter()))

        def answer(
            what: Partial | Picture | EngineError, steps: int = steps, due: float = due
        ) -> None:
            with lock:
                if isinstance(what, EngineError):
                    failures.append(what)
                else:
                    tally.add(steps, due, planned=True)
            done.release()

        engine.submit(str(number), Job(PROMPTS[number % len(PROMPTS)], number, steps, size), answer)
    for _ in arrivals:
        done.acquire()
    if failures:
        raise failures[0]
    return tally
