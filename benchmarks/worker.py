"""A process of our own that answers one JSON line with another."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError

Order = dict[str, Any]


class Worker:
    """``python -m MODULE ARGUMENTS``, whose ``main`` ends in ``obey``."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start it; ``hello`` is its first line, printed when it is ready.

        Raises:
            BenchError: it ended before.
        """
        self._name = f"{module} {arguments[0]}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        self.hello = self._answer()

    def ask(self, order: Order) -> dict[str, Any]:
        """The answer to an order.

        Raises:
            BenchError: it ended instead.
        """
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        with self._process:  # closes what leads there, then waits
            pass

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worker(module: str, *arguments: str) -> Iterator[Worker]:
    """A ``Worker`` that is ended afterwards."""
    process = Worker(module, *arguments)
    try:
        yield process
    finally:
        process.close()


def obey(hello: dict[str, Any], answer: Callable[[Order], dict[str, Any]]) -> None:
    """In the worker: say hello, then answer every line of standard input until it ends."""
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def cpu_seconds() -> float:
    """CPU time of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
