"""So that a model's process never outlives its Triton, however that ends."""

import os
import select
import signal
import threading


def die_with_parent() -> None:
    """End this process as soon as the one that started it is gone.

    Not by ``PR_SET_PDEATHSIG``: the parent in its sense is the thread of Triton that loaded the
    model, which ends when the model is loaded.
    """
    parent = os.pidfd_open(os.getppid())

    def watch() -> None:
        select.select([parent], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan", daemon=True).start()
