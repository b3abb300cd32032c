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

    Tensors on GPUs travel by NCCL, those on the CPU by gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shared(objective: nn.Module, device: torch.device) -> nn.Module:
    """The objective with gradients averaged over the processes; itself where there is one.

    On GPUs BatchNorm then normalises over the batch of all processes; on CPUs, for which torch has
    no such layer, over a process's share.
    """
    if world_size() == 1:
        return objective
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # timm's own layers are left alone by torch

        objective = convert_sync_batchnorm(objective)
    # A criterion may leave the embedding layer out, and a frozen backbone has no gradient. The
    # objective puts everything on its device itself.
    return DistributedDataParallel(
        objective, forward_sync_buffers=False, find_unused_parameters=True
    )


def local_rank() -> int:
    """Which of this machine's processes this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


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
