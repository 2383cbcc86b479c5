"""Threads that run what ``policy`` chooses."""

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from cdm_serve.engine.job import EngineError
from cdm_serve.engine.policy import STAGES, Task, Work

# Work by the stage that is to do it.
Following = list[tuple[str, Sequence[Work]]]


class Workers:
    """As many threads as may run at once; a failure answers its task's samples and goes no further.

    ``choose(waiting, running)`` gives the next task. ``dropped`` is asked of everything that waits
    before that, and answered for by ``drop``.
    """

    def __init__(
        self,
        count: int,
        choose: Callable[[Mapping[str, list[Work]], Iterable[Task]], Task | None],
        run: Callable[[Task], Following],
        dropped: Callable[[str, Work], bool],
        drop: Callable[[Work], None],
    ) -> None:
        self._choose = choose
        self._run = run
        self._dropped = dropped
        self._drop = drop
        self._waiting: dict[str, list[Work]] = {stage: [] for stage in STAGES}
        self._running: set[Task] = set()
        self._changed = threading.Condition()
        self._open = True
        self._threads = [
            threading.Thread(target=self._loop, name=f"worker-{k}", daemon=True)
            for k in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all threads are there; without them something will never be answered."""
        return all(thread.is_alive() for thread in self._threads)

    def put(self, stage: str, works: Iterable[Work]) -> None:
        """Add work; from any thread."""
        with self._changed:
            self._waiting[stage].extend(works)
            self._changed.notify_all()

    def running(self) -> list[Task]:
        """What has begun and not ended."""
        with self._changed:
            return list(self._running)

    def waiting(self, stage: str) -> int:
        """How much waits for a stage."""
        return len(self._waiting[stage])

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        self._changed.acquire()
        while True:
            if gone := self._sort_out():
                with _released(self._changed):
                    for work in gone:
                        self._drop(work)
            elif (task := self._next()) is not None:
                with _released(self._changed):
                    following = self._guarded(task)
                self._running.remove(task)
                for stage, works in following:
                    self._waiting[stage].extend(works)
                self._changed.notify_all()
            elif self._open or self._running or any(self._waiting.values()):
                self._changed.wait()
            else:
                self._changed.notify_all()
                self._changed.release()
                return

    def _sort_out(self) -> list[Work]:
        """What waits for nothing any more; under the lock."""
        gone: list[Work] = []
        for stage, works in self._waiting.items():
            unwanted = [work for work in works if self._dropped(stage, work)]
            if unwanted:
                self._waiting[stage] = [work for work in works if work not in unwanted]
                gone += unwanted
        return gone

    def _next(self) -> Task | None:
        """The next task, no longer among what waits; under the lock."""
        task = self._choose(self._waiting, self._running)
        if task is not None:
            self._running.add(task)
            waiting = self._waiting[task.stage]
            self._waiting[task.stage] = [work for work in waiting if work not in task.works]
        return task

    def _guarded(self, task: Task) -> Following:
        try:
            return self._run(task)
        except Exception as error:
            traceback.print_exc()
            for work in task.works:
                work.sample.send(EngineError(f"the model failed: {type(error).__name__}: {error}"))
            return []


@contextmanager
def _released(lock: threading.Condition) -> Iterator[None]:
    """Not holding it: what runs takes long, and an answer may bring the next request."""
    lock.release()
    try:
        yield
    finally:
        lock.acquire()
