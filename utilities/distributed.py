"""What processes that train together tell each other.

Each of W processes (ranks) embeds its own share of a batch, and an objective compares images across
the shares. One convention makes that exact for every objective: the loss of a batch is the mean of
the ranks' losses,

    L = 1/W Σ_r L_r

where L_r may depend on the embeddings of all ranks through ``gather``. Two kinds of L_r are common:
every rank computes the whole loss from gathered embeddings (then L_r = L), or every rank computes
the terms of its own images against gathered ones, as a mean over its share.

The backward pass of ``gather`` sums over the ranks the gradients that reach a rank's share, so that
a rank ends up with Σ_r ∂L_r / ∂θ through its own embeddings. Averaged over the ranks, as
``DistributedDataParallel`` does, this is ∂L / ∂θ: the gradient of one process with the whole batch.
A parameter that is used after ``gather`` has ∂L_r / ∂θ on rank r and is averaged alike.

All ranks have to gather the same tensors in the same order and go backward through all of them,
since each waits for the others. Without ``torch.distributed`` there is one process.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """W, the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, in [0, W)."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(tensor: Tensor) -> Tensor:
    """The shares of all ranks, in order of rank, with gradient.

    Args:
        tensor: (b, ...), this rank's share, of the same shape and dtype on every rank.

    Returns:
        (W b, ...); rows ``rank() * b`` and the b - 1 that follow are this rank's. With one process,
        the tensor itself.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


def smallest(number: int) -> int:
    """The smallest of an integer of each rank; goes over the CPU, so that no GPU is waited for."""
    if world_size() == 1:
        return number
    least = torch.tensor(number)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


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
