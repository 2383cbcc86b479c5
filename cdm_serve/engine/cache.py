"""Prompts that were encoded before."""

import threading

from cachetools import LRUCache

from cdm_serve.engine.pipeline import Condition


class PromptCache:
    """The conditions used last, up to a number of bytes; for use by many threads."""

    def __init__(self, capacity: int) -> None:
        self.hits = 0
        self.misses = 0
        self._conditions = LRUCache[str, Condition](capacity, lambda each: each.nbytes)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._conditions)

    @property
    def size(self) -> int:
        """Bytes of what is remembered."""
        return int(self._conditions.currsize)

    def get(self, prompt: str) -> Condition | None:
        """What is remembered of a prompt; counts a hit or a miss."""
        with self._lock:
            condition = self._conditions.get(prompt)
            self.hits += condition is not None
            self.misses += condition is None
            return condition

    def put(self, prompt: str, condition: Condition) -> None:
        """Remember it, if it fits, and forget those not used for longest until all fit."""
        if condition.nbytes <= self._conditions.maxsize:
            with self._lock:
                self._conditions[prompt] = condition
