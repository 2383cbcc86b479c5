"""Prompts and pictures that were encoded before."""

import threading
from collections.abc import Hashable
from typing import Any

from cachetools import LRUCache


class Cache:
    """What was used last, up to a number of bytes; for use by many threads.

    Values have ``nbytes``: a ``Condition`` by encoder and prompt (and the SHA-256 of its picture),
    latents by encoder and the SHA-256 of their picture.
    """

    def __init__(self, capacity: int) -> None:
        self.hits = 0
        self.misses = 0
        self._values = LRUCache[Hashable, Any](capacity, lambda each: int(each.nbytes))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def size(self) -> int:
        """Bytes of what is remembered."""
        return int(self._values.currsize)

    def get(self, key: Hashable) -> Any:
        """What is remembered, None: nothing; counts a hit or a miss."""
        with self._lock:
            value = self._values.get(key)
            self.hits += value is not None
            self.misses += value is None
            return value

    def put(self, key: Hashable, value: Any) -> None:
        """Remember it, if it fits, and forget those not used for longest until all fit."""
        if value.nbytes <= self._values.maxsize:
            with self._lock:
                self._values[key] = value
