"""Processes that train together, started by ``torchrun``; without it there is one.

Each of W ranks embeds its share of a batch, whose loss is the mean of the ranks' losses,
L = 1/W Σ_r L_r. L_r may depend on all embeddings through ``gather``, whose backward pass sums over
the ranks the gradients that reach a share. Averaged as by DistributedDataParallel, that is
∂L / ∂θ: the gradient of one process with the whole batch.

All ranks must call every exchange, in the same order, and differentiate all that they gathered.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

TIMEOUT = timedelta(hours=6)  # one process evaluates or builds a dataset while the others wait


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, in [0, W)."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is rank 0, the process that writes files."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if any: by gloo on the CPU, NCCL on CUDA."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backends = "cpu:gloo"
    if found := torch.accelerator.current_accelerator(check_available=True):
        backends += f",{found.type}:{dist.get_default_backend_for_device(found.type)}"
    dist.init_process_group(backends, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def command() -> list[str]:
    """Return the words that started this program, those of torchrun if it did."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return list(sys.orig_argv)
    with suppress(OSError):  # elsewhere than on Linux
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
        return os.fsdecode(words).split("\0")[:-1]
    return ["torchrun", "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"], *sys.argv]


def data_parallel(objective: nn.Module, device: torch.device) -> nn.Module:
    """Return the objective with gradients averaged over the ranks.

    On a GPU, BatchNorm normalises over all ranks; on CPUs, without such a layer, over a share.
    """
    if world_size() == 1:
        return objective
    if device.type != "cpu":
        from timm.layers import convert_sync_batchnorm  # torch's ignores timm's own layers

        objective = convert_sync_batchnorm(objective)
    # A criterion may leave the embedding layer out, and a frozen backbone has no gradient. The
    # objective puts everything on its device itself.
    module = DistributedDataParallel(objective, find_unused_parameters=True)
    # Buffers agree at the start and then stay each process's own. The parameter for this was
    # renamed after torch 2.10, the build for CUDA 12; the attribute was not.
    module.broadcast_buffers = False
    return module


def gather(tensor: Tensor) -> Tensor:
    """Return (b, ...) of all ranks, equal in shape, as (W b, ...) by rank, with gradient."""
    return tensor if world_size() == 1 else _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.share = len(tensor)
        tensor = tensor.contiguous()
        shares = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(shares, tensor)
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)  # others may hold grad, too
        dist.all_reduce(total)
        return total[rank() * ctx.share :][: ctx.share]


def mean(values: Tensor) -> Tensor:
    """Return the elementwise mean over the ranks."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def smallest(number: int) -> int:
    """Return the smallest of the ranks' integers; no GPU is waited for."""
    if world_size() == 1:
        return number
    least = torch.tensor(number)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def any_rank(value: bool) -> bool:
    """Return whether ``value`` is true on any rank."""
    return smallest(int(not value)) == 0


def broadcast(value: T) -> T:
    """Return rank 0's ``value``, a plain object."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather_objects(value: Any) -> list[Any]:
    """Return each rank's ``value``, a plain object or a CPU tensor, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the block on rank 0, then on the others: it fills a cache and they read it."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()
