"""Processes that train together: how they start, and what they tell each other beside gradients.

``torchrun`` starts them, on one machine or on many; ``utilities.distributed`` is about the loss.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utilities.distributed import rank, world_size

T = TypeVar("T")

PATIENCE = timedelta(hours=6)  # one process evaluates, or builds a dataset, while the others wait


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started with this one; nothing where it did not.

    Tensors of the CPU travel by gloo, those of an accelerator by its own backend: NCCL for CUDA.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backends = "cpu:gloo"
    if found := torch.accelerator.current_accelerator(check_available=True):
        backends += f",{found.type}:{dist.get_default_backend_for_device(found.type)}"
    dist.init_process_group(backends, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shared(objective: nn.Module, device: torch.device) -> nn.Module:
    """The objective with gradients averaged over the processes; itself where there is one.

    On a GPU BatchNorm then normalises over the batch of all processes; on CPUs, for which torch has
    no such layer, over a process's share.
    """
    if world_size() == 1:
        return objective
    if device.type != "cpu":
        from timm.layers import convert_sync_batchnorm  # timm's own layers are left alone by torch

        objective = convert_sync_batchnorm(objective)
    # A criterion may leave the embedding layer out, and a frozen backbone has no gradient. The
    # objective puts everything on its device itself.
    module = DistributedDataParallel(objective, find_unused_parameters=True)
    # Buffers agree at the start and then stay each process's own. The parameter for this was
    # renamed after torch 2.10, the build for CUDA 12; the attribute was not.
    module.broadcast_buffers = False
    return module


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def as_first_says(value: T) -> T:
    """What the first process has for ``value``, a plain object; all of them call it."""
    if world_size() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]


def any_says(value: bool) -> bool:
    """Whether it is so for any process; all of them call it."""
    if world_size() == 1:
        return value
    count = torch.tensor(int(value))
    dist.all_reduce(count)
    return bool(count)


def mean(values: Tensor) -> Tensor:
    """The mean of all processes' tensors, elementwise; of one, the tensor."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def all_of(value: Any) -> list[Any]:
    """Each process's ``value``, a plain object or a tensor on the CPU, in order of rank."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


@contextmanager
def first_then_others() -> Iterator[None]:
    """The first process goes through the block, then the others: it fills a cache, they read it."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()
