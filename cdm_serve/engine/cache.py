"""Prompts that were encoded before."""

import threading
from collections import OrderedDict

from cdm_serve.engine.pipeline import Condition


class PromptCache:
    """The conditions used last, up to a number of bytes; for use by many threads."""

    def __init__(self, capacity: int) -> None:
        self.hits = 0
        self.misses = 0
        self.size = 0
        self._capacity = capacity
        self._conditions: OrderedDict[str, Condition] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._conditions)

    def get(self, prompt: str) -> Condition | None:
        """What is remembered of a prompt; counts a hit or a miss."""
        with self._lock:
            condition = self._conditions.get(prompt)
            if condition is None:
                self.misses += 1
            else:
                self.hits += 1
                self._conditions.move_to_end(prompt)
            return condition

    def put(self, prompt: str, condition: Condition) -> None:
        """Remember it, and forget those not used for longest until all fit."""
        with self._lock:
            previous = self._conditions.pop(prompt, None)
            self.size += condition.nbytes - (0 if previous is None else previous.nbytes)
            self._conditions[prompt] = condition
            while self.size > self._capacity:
                _, forgotten = self._conditions.popitem(last=False)
                self.size -= forgotten.nbytes
