"""One training on several processes: ``accelerate launch -m distill ...`` or ``torchrun``.

Data parallel: every process holds the networks, and gradients are averaged after the backward
pass. Three networks, several forwards to a backward and accumulation make that simpler than a
wrapper; at a minute of arithmetic an update, nothing would be gained by overlapping the exchange.

Sharded (FSDP2, when accelerate's configuration says so): every process holds a slice of each
network, its optimiser and its average, and the blocks are gathered as they are needed. Parameters
travel in float32: the adapter's timesteps must not be rounded, and autocast rounds the rest.

A network comes to the devices tensor by tensor: no process ever has one in the host's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from distill.errors import DistillError
from distill.networks import blocks, plain_name, trained

# Longer than one process writes, hashes or encodes while the others wait.
_PATIENCE = timedelta(days=1)


class Processes:
    """The process among those that train together; one alone is a group of one.

    Args:
        device: a recipe's ``runtime.device``; ``auto`` is CUDA where there is one.

    Raises:
        DistillError: there is no such device, or FSDP of the first version is asked for.
    """

    def __init__(self, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        _check(device)
        state = PartialState(cpu=device == "cpu")
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        # accelerate chooses this process's own GPU.
        self.device = torch.device(state.device if self.count > 1 else device)
        self.sharded = self.count > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP")
        if self.sharded and os.environ.get("FSDP_VERSION", "1") != "2":
            raise DistillError("accelerate's fsdp_version is 1, expected 2: set fsdp_version: 2")
        # Where processes wait for each other's files: NCCL would give up after ten minutes.
        self.host = _host_group() if self.count > 1 else None

    @property
    def main(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def rows(self, batch: int, parts: int) -> slice:
        """The process's rows of a batch that it will cut into ``parts``.

        Raises:
            DistillError: the batch cannot be divided evenly.
        """
        share = samples_at_once(batch, self.count, parts) * parts
        return slice(self.rank * share, (self.rank + 1) * share)

    @torch.no_grad()
    def place(self, network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """Shard a network if that is asked for, bring it to the device and fill it.

        Args:
            network: its weights on the meta device; what is elsewhere keeps its value.
            weights: by ``plain_name``; of each a process reads no more than it keeps.
        """
        bare = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
        if self.sharded:
            mesh = init_device_mesh(self.device.type, (self.count,))
            for part in [*blocks(getattr(network, "transformer", network)), network]:
                # Between two passes the averages need every parameter as its slice.
                fully_shard(part, mesh=mesh, reshard_after_forward=True)
        network._apply(  # type: ignore[no-untyped-call]
            lambda t: torch.empty_like(t, device=self.device) if t.is_meta else t.to(self.device)
        )
        places = network.state_dict()
        for name in bare:
            whole, place = weights[plain_name(name)], places[name]
            if isinstance(place, DTensor):  # cut by rows, as FSDP2 does it
                parts = whole.chunk(self.count)
                whole = parts[self.rank] if self.rank < len(parts) else whole[:0]
                place = place.to_local()
            place.copy_(whole)
        return network

    def exchange_gradients(self, network: nn.Module, last: bool) -> None:
        """Say before a backward pass whether it is the ``last`` one of an update."""
        if self.sharded:
            network.set_requires_gradient_sync(last)  # type: ignore[operator]

    def average_gradients(self, network: nn.Module) -> None:
        """After the last backward pass: the mean over all processes. Sharded networks have it."""
        if self.count == 1 or self.sharded:
            return
        gradients = [p.grad for p in trained(network).values() if p.grad is not None]
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()
        torch._foreach_div_(gradients, self.count)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor that each has."""
        if self.count > 1:
            dist.all_reduce(values)
            values = values / self.count
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true anywhere; for what all processes must decide alike."""
        if self.count == 1:
            return flag
        flags = torch.tensor(float(flag))  # of the host's group: no device is waited for
        dist.all_reduce(flags, group=self.host)
        return bool(flags > 0)

    def share(self, count: int) -> list[int]:
        """The process's part of some rows: as many as any other's, so that a few come twice."""
        share = -(-count // self.count)
        return [i % count for i in range(self.rank * share, (self.rank + 1) * share)]

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """All ``count`` rows, on the CPU in every process, of which each has its ``share``."""
        rows = rows.cpu().contiguous()
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows, group=self.host)
        return torch.cat(parts)[:count]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work without the others that has been done when all leave the context, or in none.

        Raises:
            DistillError: what went wrong in another process; its own error in the process itself.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        said: list[str | None] = [None] * self.count
        if self.count > 1:
            mine = failure and (str(failure) or type(failure).__name__)
            dist.all_gather_object(said, mine, group=self.host)
        if failure:
            raise failure
        for rank, message in enumerate(said):
            if message:
                raise DistillError(f"process {rank}: {message}")

    def wait(self) -> None:
        """Until every process is here."""
        with self.together():
            pass


def samples_at_once(batch: int, processes: int, parts: int) -> int:
    """How many samples one process takes through a pass.

    Raises:
        DistillError: the batch cannot be divided evenly.
    """
    if batch % (processes * parts):
        raise DistillError(
            f"recipe key batch = {batch} must be a multiple of {processes * parts}: "
            f"{processes} processes times runtime.accumulate = {parts}"
        )
    return batch // (processes * parts)


@cache
def _host_group() -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return group


def _check(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise DistillError(
            f"recipe key runtime.device: no device {device} here; use auto"
        ) from error
