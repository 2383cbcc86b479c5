"""Times and memory of what runs on a GPU, or on the CPU in its place."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.figures import percentiles

Result = dict[str, Any]


def reason(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


class Meter:
    """Of one ``device``, ``cuda`` or ``cpu``; the latter has no memory of its own to count."""

    def __init__(self, device: str) -> None:
        self.device = device

    def attempt(self, run: Callable[[], Result]) -> Result:
        """What it gives, or why it could not; in either case nothing is left on the GPU."""
        try:
            found = run()
        except Exception as error:
            found = {"absent": reason(error)}
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return found

    def timed(self, run: Callable[[], Any], seconds: float) -> Result:
        """Milliseconds of one run, of at least three after two that warm up; peak memory."""
        for _ in range(2):
            run()
        self.reset_peak()
        spent: list[float] = []
        end = time.perf_counter() + seconds
        while len(spent) < 3 or time.perf_counter() < end:
            self.synchronize()
            begin = time.perf_counter()
            run()
            self.synchronize()
            spent.append(1e3 * (time.perf_counter() - begin))
        return {**percentiles(spent), "peak_bytes": self.peak_bytes()}

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """Of the GPU's memory."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def used_bytes(self) -> int | None:
        """Of the GPU's memory, by whoever."""
        if self.device == "cpu":
            return None
        free, total = torch.cuda.mem_get_info()
        return total - free
