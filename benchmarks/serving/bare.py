"""The engine without any server, in a process of its own: the measure of what a server costs."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.load.client import cpu_seconds
from benchmarks.prompts import Requests
from benchmarks.serving.exported import find_export
from benchmarks.serving.measure import Run, made
from benchmarks.serving.stages import EngineStages
from benchmarks.serving.worker import Answerer, Order
from cdm_serve.engine.job import EngineError, Job, Partial, Picture
from cdm_serve.engine.scheduler import Scheduler
from cdm_serve.engine.warmup import measure


def bare_engine(folder: Path) -> Answerer:
    """The engine of an exported model, warmed up as Triton's process does it.

    With ``clients`` in an order the scheduler is asked by closed loops for ``seconds``, whose
    prompts come round again after ``known``, or never; with ``batch`` the graphs run alone in a
    loop: text, all steps and decoding of so many pictures.
    """
    exported = find_export(folder.parent, folder.name)
    pipeline = exported.pipeline()
    stages, size = EngineStages(pipeline), pipeline.manifest.default_size
    costs, _ = measure(pipeline, exported.max_batch, exported.warm_up_seconds)
    scheduler = Scheduler(pipeline, costs, exported.cache_bytes)
    numbers = itertools.count()

    def answer(order: Order) -> Run:
        begin = cpu_seconds()
        if "batch" in order:
            run = full_batches(stages, size, order["batch"], order["seconds"])
        else:
            requests = Requests(known=order["known"])
            how = order["clients"], order["steps"], order["seconds"]
            run = closed_loop(scheduler, size, requests, numbers, *how)
        spent = round(1e3 * (cpu_seconds() - begin) / run["requests"], 2)
        return run | {"cpu_milliseconds": {"engine": spent}, "server_cpu_ms": spent}

    return answer


def full_batches(stages: EngineStages, size: str, batch: int, seconds: float) -> Run:
    """Pictures by the graphs alone, one batch after the other."""
    due: list[float] = []
    ended: list[float] = []
    begin = time.perf_counter()
    while not due or time.perf_counter() < begin + seconds:
        due += [time.perf_counter()] * batch
        stages.picture(batch, size)
        ended += [time.perf_counter()] * batch
    return made([stages.steps] * len(due), due, ended)


def closed_loop(
    scheduler: Scheduler,
    size: str,
    requests: Requests,
    numbers: Iterator[int],
    clients: int,
    steps: Sequence[int],
    seconds: float,
) -> Run:
    """Clients who ask again as soon as they are answered, for ``steps`` in turn.

    Raises:
        EngineError: a picture was not made.
    """
    end = time.perf_counter() + seconds
    lock, idle = threading.Lock(), threading.Semaphore(0)
    asked: list[int] = []
    due: list[float] = []
    ended: list[float] = []
    failures: list[EngineError] = []

    def ask() -> None:
        number = next(numbers)
        wanted, sent = steps[number % len(steps)], time.perf_counter()

        def answer(what: Partial | Picture | EngineError) -> None:
            with lock:
                if isinstance(what, EngineError):
                    failures.append(what)
                asked.append(wanted)
                due.append(sent)
                ended.append(time.perf_counter())
                more = ended[-1] < end and not failures
            if more:
                ask()
            else:
                idle.release()

        fields = requests.fields(number)
        scheduler.submit(str(number), Job(str(fields["prompt"]), number, wanted, size), answer)

    for _ in range(clients):
        ask()
    for _ in range(clients):
        idle.acquire()
    if failures:
        raise failures[0]
    return made(asked, due, ended)
