"""Contrastive loss: Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant
Mapping, CVPR 2006, section 2.1.
"""

import torch
from torch import Tensor

from batchminer import Miner
from utilities.structures import References

from .base import PairCriterion, require_at_least
from .primitives import chosen_distances, hinge_mean


class Contrastive(PairCriterion):
    """Pulls positives within one distance of their anchor and pushes negatives beyond another.

        L = 1/A⁺ Σ_(a,p,n) [ d_ap - pos_margin ]₊  +  1/A⁻ Σ_(a,p,n) [ neg_margin - d_an ]₊

    with Euclidean distances d over the pairs of the mined triplets, as in Roth et al., ICML 2020;
    the paper squares both hinges, and has no margin for positives. A⁺ and A⁻ count the active
    positive and negative pairs, at least 1 each; the code of Roth et al. averages over all
    triplets, so its push fades as negatives leave the margin.

    Args:
        pos_margin: in units of distance, >= 0; nearer positives are left alone.
        neg_margin: in units of distance; farther negatives are left alone.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0, which is 0 without any triplet.
    """

    def __init__(self, miner: Miner, *, pos_margin: float = 0.0, neg_margin: float = 1.0) -> None:
        super().__init__()
        require_at_least(0, pos_margin=pos_margin, neg_margin=neg_margin)
        self.miner = miner
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        anchors, positives, negatives = self.miner(embeds, labels, references)  # (T,) each
        others = torch.stack((positives, negatives))
        d_ap, d_an = chosen_distances(embeds, references, anchors, others)
        return hinge_mean(d_ap - self.pos_margin) + hinge_mean(self.neg_margin - d_an)
