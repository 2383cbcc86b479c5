"""Several processes for one training, as torchrun starts them."""

import os

import torch.distributed as dist


def join_processes() -> tuple[int, int]:
    """Join the others, if any; return this process's rank and their number."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()
