"""Margin loss.

Wu, Manmatha, Smola and Krähenbühl, Sampling Matters in Deep Embedding Learning, ICCV 2017,
section 4.2.
"""

from typing import Any

import torch
from torch import Tensor, nn

from batchminer import Miner

from .base import Criterion, check_label_range


class Margin(Criterion):
    """Pulls positives inside and pushes negatives outside a boundary that each class learns.

        L = 1/A Σ_(a,p,n) ( [d_ap - β_y(a) + α]₊ + [β_y(a) - d_an + α]₊ ) + ν Σ_{c in batch} β_c

    with Euclidean distances d. A counts the active pairs, positive and negative ones each, and is
    at least 1; the code of Roth et al., ICML 2020, counts a triplet once when both are active. Of
    the paper's β (global, class, image) there is the class's, as in that code.

    Args:
        n_classes: number of training classes, one boundary each.
        miner: chooses the triplets.
        margin: α, in units of distance: half the gap between the two sides.
        beta: initial boundary, in units of distance; in (0, 2) for unit embeddings.
        beta_lr: learning rate of the boundaries. They take no weight decay: ν is theirs, and under
            Adam a decay would move the classes that are not in the batch by full steps.
        nu: ν >= 0, weight of the boundaries of the batch's classes.
        beta_constant: the boundary stays at ``beta``.

    Shapes: embeds (B, D), labels (B,) int64 in [0, n_classes); returns a scalar.

    Raises:
        ValueError: a label out of range (checked on CPU), or ``nu`` with a constant boundary.
    """

    beta: Tensor

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
        if beta_constant and nu:
            raise ValueError(
                f"--loss_margin_nu {nu} regularises a boundary that --loss_margin_beta_constant "
                "keeps; drop one of them"
            )
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

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        check_label_range(labels, self.n_classes)
        anchors, positives, negatives = self.miner(embeds, labels)  # (T,) each
        d_ap = distances(embeds[anchors], embeds[positives])
        d_an = distances(embeds[anchors], embeds[negatives])
        beta = self.beta[labels[anchors]]
        pos = (d_ap - beta + self.margin).relu()
        neg = (beta - d_an + self.margin).relu()
        active = (pos > 0).sum() + (neg > 0).sum()
        loss = (pos.sum() + neg.sum()) / active.clamp(min=1)
        if self.nu:
            present = torch.zeros_like(self.beta).index_fill(0, labels, 1.0)  # (C,) 0 or 1
            loss = loss + self.nu * (present * self.beta).sum()
        return loss

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        if not self.beta.requires_grad:
            return []
        return [{"params": [self.beta], "lr": self.beta_lr, "weight_decay": 0.0}]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of matched rows, (T, D) twice to (T,).

    From differences, not from inner products, so that near pairs keep their digits; the norm's
    gradient at distance 0 is 0.
    """
    return torch.linalg.vector_norm(a - b, dim=1)
