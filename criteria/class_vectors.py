"""The base of the losses that compare images with learned class vectors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Criterion, check_label_range, require_at_least


class ClassVectorCriterion(Criterion):
    """An objective that compares images with learned vectors of the classes: weights or proxies.

    Embeddings and class vectors are normalised here, so a vector's length only sets how fast it
    turns: a step of Adam moves each coordinate by about the learning rate. Hence the first vectors,
    normal from torch's global generator, are as long as in the code that the rates were tuned with,
    and none has weight decay, which would shorten them and so speed them up.

    Args:
        n_classes: C, number of training classes.
        embed_dim: D.
        per_class: K, vectors of each class.
        std: standard deviation of the first vectors' coordinates; None is 1/√(3D), so that they are
            as long as the uniform ones in ±1/√D of Zhai and Wu's code.
        lr: learning rate of the class vectors; None is ``lrmulti`` times the embedder's.
        lrmulti: learning rate of the class vectors, as a multiple of the embedder's.

    Shapes: embeds (B, D) of any length, labels (B,) int64 in [0, C), checked on a CPU; returns a
    scalar, >= 0 unless a loss says otherwise.
    """

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        *,
        per_class: int = 1,
        std: float | None = None,
        lr: float | None = None,
        lrmulti: float = 1.0,
    ) -> None:
        super().__init__()
        require_at_least(0, lrmulti=lrmulti)
        if lr is not None:
            require_at_least(0, lr=lr)
        self.n_classes = n_classes
        self.per_class = per_class
        self.lr = lr
        self.lrmulti = lrmulti
        std = (3 * embed_dim) ** -0.5 if std is None else std
        # The K vectors of a class lie C rows apart: (K * C, D) reads as (K, C, D).
        self.class_vectors = nn.Parameter(std * torch.randn(per_class * n_classes, embed_dim))

    def unit_vectors(self, dtype: torch.dtype) -> Tensor:
        """Return the class vectors at length 1, (K * C, D)."""
        return F.normalize(self.class_vectors.to(dtype), dim=1)

    def cosines(self, embeds: Tensor, labels: Tensor, unit_vectors: Tensor | None = None) -> Tensor:
        """Return the cosines of images and class vectors: (B, C), or (B, K, C) if K > 1."""
        check_label_range(labels, self.n_classes)
        if unit_vectors is None:
            unit_vectors = self.unit_vectors(embeds.dtype)
        cosines = F.normalize(embeds, dim=1) @ unit_vectors.T
        return cosines if self.per_class == 1 else cosines.unflatten(1, (self.per_class, -1))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        own = lr * self.lrmulti if self.lr is None else self.lr
        return [{"params": [self.class_vectors], "lr": own, "weight_decay": 0.0}]


def own_class(similarities: Tensor, labels: Tensor) -> Tensor:
    """Return each image's similarity to its own class, (B, 1), from (B, C)."""
    return similarities.gather(1, labels[:, None])


def margin_softmax(similarities: Tensor, labels: Tensor, own: Tensor, scale: float) -> Tensor:
    """Return the cross-entropy of similarities whose own-class entries were made harder.

        L = -1/B Σ_i log  exp(scale · own_i) / (exp(scale · own_i) + Σ_{c ≠ y_i} exp(scale · s_ic))

    ``own`` (B, 1) replaces each image's similarity to its own class in (B, C).
    """
    logits = scale * similarities.scatter(1, labels[:, None], own)
    return F.cross_entropy(logits, labels)
