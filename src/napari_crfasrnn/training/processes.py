"""Several processes that train one model together: torch's distributed data parallelism under ``torchrun``.

Without ``torchrun`` there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """One process among those that train together.

    Attributes
    ----------
    rank, size
        Which one it is, from 0, and how many there are.
    device
        Where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Return which of ``count`` things this process does."""
        return range(self.rank, count, self.size)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def from_first(self, values: Tensor) -> Tensor:
        """Return what the first process has."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.broadcast(values, 0)
        return values

    def parallel(self, module: nn.Module) -> Any:
        """Return a module that averages its gradients over all processes."""
        if self.size == 1:
            return module
        index = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=index)


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` has started, if it has; leave them at the end.

    Parameters
    ----------
    device
        On "cuda" each process takes the GPU of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if ours:
            dist.destroy_process_group()
