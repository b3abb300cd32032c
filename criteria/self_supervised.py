"""The base of the self-supervised objectives: two views, heads, full precision, a queue."""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utilities.optimization import decay_groups
from utilities.structures import Batch, Embedding

from .base import Counting, Criterion, at_least_float32

P = ParamSpec("P")


class SelfSupervised(Criterion):
    """An objective on the pooled features of two views, through heads of its own.

    A subclass makes a ``projector`` and writes ``loss``, or else ``forward``, from the features
    (B, F) of the two views. Heads follow autocast, losses are written under ``full_precision``.
    Each view goes through the heads alone (the authors of SimCLR stack the views).

    With several processes, B is the share of one and the comparisons reach over all shares.
    BatchNorm normalises over a share, unless ``nn.SyncBatchNorm.convert_sync_batchnorm`` converts
    the criterion.

    Args:
        feature_dim: F.

    Raises:
        ValueError: another number of views than two, features that are not (B, F), or one image
            where the heads normalise over the batch.
    """

    projector: nn.Module
    n_views = 2
    reads = "features"
    gathers = True

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        self.check(views, batch)
        first, second = (at_least_float32(view.features) for view in views)
        return self(first, second)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(self.projector(first), self.projector(second))

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of the two views' projections (B, D)."""
        raise NotImplementedError

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return decay_groups(self, lr)

    def check(self, views: Sequence[Embedding], batch: Batch) -> None:
        super().check(views, batch)
        name, n = type(self).__name__, len(batch.labels)
        for view in views:
            if view.features.shape != (n, self.feature_dim):
                raise ValueError(
                    f"{name} needs features ({n}, {self.feature_dim}), "
                    f"got {tuple(view.features.shape)}"
                )
        if n == 1 and any(isinstance(m, nn.BatchNorm1d) and m.training for m in self.modules()):
            raise ValueError(
                f"{name} normalises over the batch in its heads; "
                "use 2 images or more for each process, got 1"
            )


def head(*dims: int, last_norm: bool = False, last_affine: bool = True) -> nn.Sequential:
    """Return linear layers from dims[0] to dims[-1], BatchNorm and ReLU after all but the last.

    A layer before a BatchNorm has no bias, which the norm would remove.

    Args:
        last_norm: BatchNorm after the last layer, too.
        last_affine: give that norm a scale and a shift.
    """
    layers: list[nn.Module] = []
    for dim_in, dim in pairwise(dims[:-1]):
        layers += [nn.Linear(dim_in, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
    layers.append(nn.Linear(dims[-2], dims[-1], bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(dims[-1], affine=last_affine))
    return nn.Sequential(*layers)


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function of tensors outside autocast, on float32 or wider.

    Exponentials of scaled similarities overflow half precision, and sums over a batch lose digits.
    """

    @functools.wraps(loss)
    def wide(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given: list[Any] = [at_least_float32(a) if isinstance(a, Tensor) else a for a in args]
        device = next(a.device.type for a in given if isinstance(a, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*given, **kwargs)

    return wide


@full_precision
def mean_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean cosine of corresponding rows (B, D); a row of zeros has cosine 0."""
    return (F.normalize(first, dim=1) * F.normalize(second, dim=1)).sum(dim=1).mean()


class Queue(Counting):
    """The last ``size`` rows that were pushed, first in, first out.

    Args:
        size: number of rows; a queue of none is always full.
        shape: of a row.
        random: start full of random unit rows, drawn from torch's global generator.
    """

    counters = ("filled",)
    rows: Tensor

    def __init__(self, size: int, *shape: int, random: bool = False) -> None:
        super().__init__()
        rows = torch.zeros(size, *shape)
        if random:
            rows = F.normalize(torch.randn(size, *shape), dim=-1)
        self.register_buffer("rows", rows)  # oldest first; the last `filled` are in use
        self.size = size
        self.filled = size if random else 0

    @property
    def full(self) -> bool:
        return self.filled == self.size

    def push(self, rows: Tensor) -> None:
        """Append rows (B, *shape) and drop as many of the oldest."""
        # Not written in place: a backward pass may still read the old tensor.
        self.rows = torch.cat([self.rows, rows.detach().to(self.rows.dtype)])[len(rows) :]
        self.filled = min(self.filled + len(rows), self.size)
