"""Several processes for one training, as torchrun starts them, and the device each of them has."""

import os

import torch
import torch.distributed as dist


def training_device() -> torch.device:
    """Return this process's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def join_processes() -> tuple[int, int]:
    """Join the others, if any; return this process's rank and their number."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if training_device().type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process, the same answer in all."""
    if not dist.is_initialized():
        return flag
    raised = torch.tensor(float(flag), device=training_device())
    dist.all_reduce(raised)
    return bool(raised.item())
