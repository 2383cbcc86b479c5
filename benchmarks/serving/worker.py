"""A process of our own that answers orders: what runs there shares no threads with us."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from benchmarks.errors import BenchError

Order = dict[str, Any]
Answerer = Callable[[Order], Any]
_answer: Answerer


@contextmanager
def worker(make: Callable[..., Answerer], *arguments: Any) -> Iterator[Answerer]:
    """What ``make(*arguments)`` gives, made and called in a process of its own.

    Raises:
        BenchError: the process ended.
        Exception: whatever is raised there.
    """
    with _process(make.__module__) as ask:
        ask(_make, make, arguments)
        yield partial(ask, _answered)


def in_a_process(run: Callable[..., Any], *arguments: Any) -> Any:
    """What ``run(*arguments)`` gives in a process of its own; raises as ``worker`` does."""
    with _process(run.__module__) as ask:
        return ask(run, *arguments)


@contextmanager
def _process(name: str) -> Iterator[Callable[..., Any]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        def ask(what: Callable[..., Any], *values: Any) -> Any:
            try:
                return pool.submit(what, *values).result()
            except BrokenProcessPool:
                raise BenchError(f"{name} ended; what it said is above") from None

        yield ask


def _make(make: Callable[..., Answerer], arguments: tuple[Any, ...]) -> None:
    global _answer
    _answer = make(*arguments)


def _answered(order: Order) -> Any:
    return _answer(order)
