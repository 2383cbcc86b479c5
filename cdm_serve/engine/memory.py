"""Memory: what may still be taken, and what a larger batch would take, told from smaller ones.

Where there is too little Linux ends the process without a word, so it has to be known before.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self")


def available() -> int:
    """Bytes that a process may still take, also in a container, whose file cache can go."""
    free = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    limit = _CGROUP / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        cache = re.search(r"^inactive_file (\d+)", (_CGROUP / "memory.stat").read_text(), re.M)
        used = int((_CGROUP / "memory.current").read_text()) - (int(cache[1]) if cache else 0)
        free = min(free, int(most) - used)
    return free


class Growth:
    """How the process grows with the batch in which it runs one graph at one size."""

    def __init__(self) -> None:
        self._peaks: list[tuple[int, int]] = []  # batch, bytes of the whole process

    @contextmanager
    def watch(self, batch: int) -> Iterator[None]:
        """Around the first run of a batch; one that is no larger than those before says nothing."""
        with suppress(OSError):  # from here on; where that is forbidden, since the start
            (_PROCESS / "clear_refs").write_text("5")
        yield
        if not self._peaks or batch > self._peaks[-1][0]:
            self._peaks.append((batch, _kilobytes(_PROCESS / "status", "VmHWM")))

    def need(self, batch: int) -> int:
        """Bytes that a batch would take besides what is taken; 0 before two batches have run."""
        if len(self._peaks) < 2 or batch <= self._peaks[-1][0]:
            return 0
        (small, less), (large, more) = self._peaks[-2:]
        each = max(0, more - less) / (large - small)
        now = _kilobytes(_PROCESS / "status", "VmRSS")
        return max(0, int(more + each * (batch - large)) - now)

    def lacks(self, batch: int) -> str | None:
        """What is said of a batch that memory is not there for."""
        if (need := self.need(batch)) <= (free := available()):
            return None
        return f"it would take {need / GIB:.1f} GiB of memory, and {free / GIB:.1f} are available"


def _kilobytes(path: Path, name: str) -> int:
    (number,) = re.findall(rf"^{name}:\s*(\d+)", path.read_text(), re.M)
    return int(number) * 1024
