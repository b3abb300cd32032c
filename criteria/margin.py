"""Margin loss: Wu, Manmatha, Smola and Krähenbühl, Sampling Matters in Deep Embedding Learning,
ICCV 2017, section 4.2.
"""

from typing import Any

import torch
from torch import Tensor, nn

from batchminer import Miner
from utilities.structures import References

from .base import PairCriterion, check_label_range, require_at_least, require_finite
from .primitives import chosen_distances, hinge_mean


class Margin(PairCriterion):
    """Pulls positives inside and pushes negatives outside a boundary that each class learns.

        L = 1/A Σ_(a,p,n) ( [d_ap - β_y(a) + α]₊ + [β_y(a) - d_an + α]₊ ) + ν Σ_{c in batch} β_c

    with Euclidean distances d. A counts the active pairs, positive and negative ones each, and is
    at least 1; the code of Roth et al., ICML 2020, counts a triplet once when both are active. The
    paper also has a β for all classes and one for each image.

    Args:
        margin: α, in units of distance: half the gap between the two sides.
        beta: initial boundary, in units of distance; in (0, 2) for unit embeddings.
        beta_lr: learning rate of the boundaries. They have no weight decay: under Adam it would
            move the classes that are not in the batch by full steps.
        nu: ν >= 0, weight of the boundaries of the batch's classes.
        beta_constant: keep the boundary at ``beta``.

    Shapes: embeds (B, D), labels (B,) int64 in [0, n_classes), checked on a CPU; returns a scalar,
    or, with no triplets, ν Σ β.

    Raises:
        ValueError: a label out of range, or ``nu`` with a constant boundary.
    """

    beta: Tensor  # (C,)

    def __init__(
        self,
        n_classes: int,
        miner: Miner,
        *,
        margin: float = 0.2,
        beta: float = 1.2,
        beta_lr: float = 5e-4,
        nu: float = 0.0,
        beta_constant: bool = False,
    ) -> None:
        super().__init__()
        require_at_least(0, margin=margin, beta_lr=beta_lr, nu=nu)
        require_finite(beta=beta)
        if beta_constant and nu:
            raise ValueError(f"nu must be 0 with a constant boundary; got {nu:g}")
        self.n_classes = n_classes
        self.miner = miner
        self.margin = margin
        self.beta_lr = beta_lr
        self.nu = nu
        boundaries = torch.full((n_classes,), float(beta))  # (C,)
        if beta_constant:
            self.register_buffer("beta", boundaries)
        else:
            self.beta = nn.Parameter(boundaries)

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        check_label_range(labels, self.n_classes)
        anchors, positives, negatives = self.miner(embeds, labels, references)  # (T,) each
        others = torch.stack((positives, negatives))
        d_ap, d_an = chosen_distances(embeds, references, anchors, others)  # (T,) each
        beta = self.beta.index_select(0, labels.index_select(0, anchors))  # (T,)
        loss = hinge_mean(torch.stack((d_ap - beta, beta - d_an)) + self.margin)
        if self.nu:
            present = torch.zeros_like(self.beta).index_fill_(0, labels, self.nu)  # (C,), 0 or ν
            loss = loss + present @ self.beta
        return loss

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        if not self.beta.requires_grad:
            return []
        return [{"params": [self.beta], "lr": self.beta_lr, "weight_decay": 0.0}]
