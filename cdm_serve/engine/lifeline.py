"""So that a model's process never outlives its Triton, however that ends."""

import fcntl
import os
import signal

VARIABLE = "CDM_SERVE_LIFELINE"


def hold_on() -> None:
    """Have the kernel kill this process when its Triton is gone, even while it hangs.

    The guard gave Triton a pipe and its numbers in ``VARIABLE``; once every process but Triton has
    closed the end for writing, Triton's end closes it for good, and the kernel signals that to
    whoever asked for it (``O_ASYNC`` of fcntl(2)). A thread that waits for it would need Python's
    lock, which a model that waits for an answer of Triton may hold for ever; and
    ``PR_SET_PDEATHSIG`` means the thread of Triton that loads the model, which ends much earlier.
    A Triton without our guard has no pipe: nothing is done then.
    """
    numbers = os.environ.get(VARIABLE)
    if numbers is None:
        return
    reading, writing = map(int, numbers.split(":"))
    os.close(writing)
    # Opened anew: the owner of a signal belongs to the opening, and other models share this one.
    own = os.open(f"/proc/self/fd/{reading}", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
