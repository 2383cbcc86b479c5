"""A thread that takes waiting work in batches: whoever is next, and others of the same kind."""

import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from cdm_serve.engine.job import EngineError
from cdm_serve.engine.sample import Sample


class Work(Protocol):
    """Something done for a sample."""

    @property
    def sample(self) -> Sample:
        """For whom."""


W = TypeVar("W", bound=Work)


class Stage(Generic[W]):
    """Runs ``run`` on batches of what was put in; a failure answers the batch and goes no further.

    ``limit(size, count)`` is how many of ``count`` waiting samples of a picture size to take.
    ``wanted`` is asked of everything that waits before each batch; what it refuses is dropped.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[W]], None],
        limit: Callable[[str, int], int],
        wanted: Callable[[Sample], bool],
    ) -> None:
        self._run = run
        self._limit = limit
        self._wanted = wanted
        self._waiting: list[W] = []
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there; without it nothing will ever be answered."""
        return self._thread.is_alive()

    def put(self, works: Iterable[W]) -> None:
        """Add work; from any thread."""
        with self._changed:
            self._waiting.extend(works)
            self._changed.notify()

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._waiting:
                    self._changed.wait()
                waiting, self._waiting = self._waiting, []
            if not waiting and not self._open:
                return
            batch, rest = self._choose([work for work in waiting if self._wanted(work.sample)])
            with self._changed:
                self._waiting = rest + self._waiting
            if batch:
                self._guarded(batch)

    def _choose(self, waiting: list[W]) -> tuple[list[W], list[W]]:
        """The lowest rank's size, in the order of rank; and what waits on."""
        if not waiting:
            return [], []
        waiting.sort(key=lambda work: work.sample.rank)
        size = waiting[0].sample.job.size
        same = [work for work in waiting if work.sample.job.size == size]
        batch = same[: self._limit(size, len(same))]
        return batch, [work for work in waiting if work not in batch]

    def _guarded(self, batch: list[W]) -> None:
        try:
            self._run(batch)
        except Exception as error:
            traceback.print_exc()
            for work in batch:
                work.sample.send(EngineError(f"the model failed: {type(error).__name__}: {error}"))
