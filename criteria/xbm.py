"""Cross-batch memory: Wang, Zhang, Huang and Scott, Cross-Batch Memory for Embedding Learning, CVPR
2020, section 3.
"""

from typing import Any

import torch
from torch import Tensor

from utilities.structures import References

from .base import Counting, Criterion, PairCriterion, require_at_least


class CrossBatchMemory(Counting, Criterion):
    """Compares each image also with the images of earlier batches, whose embeddings drift slowly.

        L = L_pair(batch, batch) + weight · L_pair(batch, memory)

    The memory holds the last ``size`` training embeddings, without gradient. It is not used in the
    first ``start`` iterations, while embeddings still move fast; the last of these fills it.

    The authors' code stores a batch before it is compared with the memory, so that the pairs within
    the batch count twice, and drops pairs of similarity 1. Here a batch is compared first and then
    stored: the memory holds only other batches, and duplicates count.

    Args:
        criterion: L_pair, any loss over pairs.
        embed_dim: D.
        size: number of embeddings to keep, >= 1.
        start: number of training iterations before the first that uses the memory.
        weight: of the loss against the memory.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar.
    """

    counters = ("filled", "iterations")
    embeds: Tensor
    labels: Tensor

    def __init__(
        self,
        criterion: PairCriterion,
        embed_dim: int,
        *,
        size: int,
        start: int = 1000,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        require_at_least(1, size=size)
        require_at_least(0, start=start, weight=weight)
        self.criterion = criterion
        self.size = size
        self.start = start
        self.weight = weight
        # Oldest first; the last `filled` rows are in use.
        self.register_buffer("embeds", torch.zeros(size, embed_dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long))
        self.filled = 0
        self.iterations = 0

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        loss = self.criterion(embeds, labels)
        if self.filled:
            used = slice(self.size - self.filled, None)
            memory = References(self.embeds[used].to(embeds.dtype), self.labels[used])
            loss = loss + self.weight * self.criterion(embeds, labels, memory)
        if self.training:
            self.iterations += 1
            if self.iterations >= self.start:
                # Not written in place: the backward pass still reads the old tensors.
                new = embeds.detach().to(self.embeds.dtype)
                self.embeds = torch.cat([self.embeds, new])[-self.size :]
                self.labels = torch.cat([self.labels, labels])[-self.size :]
                self.filled = min(self.filled + len(labels), self.size)
        return loss

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return self.criterion.param_groups(lr)
