"""A small process between the gateway and Triton, so that Triton never outlives the gateway.

It holds the read end of a pipe whose other end only the gateway has: when that closes, for whatever
reason (also ``kill -9`` of the gateway), Triton is asked to end, then its process group is killed
and its shared memory and working folder are removed. SIGTERM does the same without asking first.
Should this process be killed too, the kernel ends Triton, and the next guard removes what it left,
which it knows by a lock that nobody holds any more.
Run as a script with ``python -I``; standard library only, so that it starts at once.

Usage: guard.py FOLDER SHM_PREFIX GRACE_SECONDS COMMAND...
"""

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER_PREFIX = "cdm-serve-"
SHM_PREFIX = "cdm_"
PR_SET_PDEATHSIG = 1
LIFELINE = "CDM_SERVE_LIFELINE"  # as cdm_serve.engine.lifeline has it
SHARED_MEMORY = Path("/dev/shm")


def main(arguments: list[str]) -> int:
    """Run the command until it ends, the pipe closes or SIGTERM comes; then clean up."""
    folder, prefix, grace, *command = arguments
    claim = _claim(folder, prefix)
    _remove_abandoned()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    stop_now: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop_now.append(number))
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    # Held by nobody but Triton; its models ask the kernel to end them when it closes.
    lifeline = os.pipe()
    try:
        triton = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            pass_fds=lifeline,
            env=os.environ | {LIFELINE: "{}:{}".format(*lifeline)},
        )
        for end in lifeline:
            os.close(end)
        while triton.poll() is None and not stop_now:
            ready, _, _ = select.select([sys.stdin.fileno(), wake], [], [])
            if wake in ready:
                os.read(wake, 512)
            closed = sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 512)
            if closed and not stop_now:  # both come at once from who does not want to wait
                _ask_to_end(triton, float(grace))
                break
        _kill_group(triton.pid)
        return triton.wait()
    finally:
        _remove(folder, prefix)
        os.close(claim)


def _claim(folder: str, prefix: str) -> int:
    """A locked file beside the segments that says where the folder is; the lock ends with us."""
    hidden = SHARED_MEMORY / f".{prefix}lock"
    descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, os.fsencode(folder))
    hidden.rename(SHARED_MEMORY / f"{prefix}lock")  # only now can others find it
    return descriptor


def _remove_abandoned() -> None:
    """Remove what killed guards of this user left."""
    for lock in SHARED_MEMORY.glob(f"{SHM_PREFIX}*_lock"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = os.fsdecode(file.read())
            # Anybody may write here: only to our own files is this our own folder.
            if os.fstat(file.fileno()).st_uid == os.getuid() and FOLDER_PREFIX in folder:
                _remove(folder, lock.name.removesuffix("lock"))


def _remove(folder: str, prefix: str) -> None:
    for segment in SHARED_MEMORY.glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> None:
    """Between fork and exec: the kernel kills Triton should even this process be killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ask_to_end(triton: subprocess.Popen[bytes], grace: float) -> None:
    triton.terminate()
    deadline = time.monotonic() + grace
    while triton.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _kill_group(leader: int) -> None:
    """Kill what is left of the session, stubs included, and wait until it is gone."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.01)
        if not _alive(leader):
            return


def _alive(group: int) -> bool:
    """Whether any process of the group is still there and not a zombie."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(process_group) == group and state != "Z":
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
