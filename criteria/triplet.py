"""Triplet loss: Schroff, Kalenichenko and Philbin, FaceNet: A Unified Embedding for Face
Recognition and Clustering, CVPR 2015, section 3.1.
"""

import torch
from torch import Tensor

from batchminer import Miner
from utilities.structures import References

from .base import PairCriterion, require_at_least
from .primitives import chosen_distances, hinge_mean


class Triplet(PairCriterion):
    """Makes each anchor's positive nearer than its negative by a margin.

        L = 1/A Σ_(a,p,n) [ d_ap² - d_an² + margin ]₊

    with squared Euclidean distances, as in the paper. A counts the active triplets, at least 1
    (Hermans et al., In Defense of the Triplet Loss, 2017); the paper sums, and the code of Roth et
    al., ICML 2020, averages over all triplets.

    Args:
        margin: in units of squared distance, >= 0.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0, which is 0 without any triplet.
    """

    def __init__(self, miner: Miner, *, margin: float = 0.2) -> None:
        super().__init__()
        require_at_least(0, margin=margin)
        self.miner = miner
        self.margin = margin

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        anchors, positives, negatives = self.miner(embeds, labels, references)  # (T,) each
        others = torch.stack((positives, negatives))
        d2_ap, d2_an = chosen_distances(embeds, references, anchors, others, squared=True)
        return hinge_mean(d2_ap - d2_an + self.margin)
