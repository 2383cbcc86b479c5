"""What the process table says. Standard library only, as ``alive`` needs it."""

import os
from pathlib import Path

# Of the silence of a process, so much at work (one core is 1) means that it is not dead but slow.
AT_WORK = 0.01


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    fields = _fields(pid)
    return fields is not None and fields[0] not in "ZX"


def cpu_seconds(pid: int) -> float:
    """What all its threads have used so far; 0.0 when it is gone."""
    fields = _fields(pid)
    return 0.0 if fields is None else sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def children(parent: int) -> list[int]:
    """Processes whose parent this is."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    found = ((pid, _fields(pid)) for pid in pids)
    return [pid for pid, fields in found if fields is not None and int(fields[1]) == parent]


def _fields(pid: int) -> list[str] | None:
    """Those of ``/proc/PID/stat`` behind the name, which may have blanks in it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
