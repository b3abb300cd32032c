"""Triplet loss.

Schroff, Kalenichenko and Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering,
CVPR 2015, section 3.1.
"""

from torch import Tensor

from batchminer import Miner

from .base import Criterion


class Triplet(Criterion):
    """Asks of each anchor that its positive be nearer than its negative by a margin.

        L = 1/A Σ_(a,p,n) [ d_ap² - d_an² + margin ]₊

    with squared Euclidean distances, as in the paper. A counts the triplets that are active, at
    least 1 (Hermans et al., In Defense of the Triplet Loss, 2017); the paper sums, and the code of
    Roth et al., ICML 2020, averages over all triplets.

    Args:
        miner: chooses the triplets.
        margin: in units of squared distance, >= 0.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0.
    """

    def __init__(self, miner: Miner, *, margin: float = 0.2) -> None:
        super().__init__()
        self.miner = miner
        self.margin = margin

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        anchors, positives, negatives = self.miner(embeds, labels)  # (T,) each
        d2_ap = (embeds[anchors] - embeds[positives]).square().sum(dim=1)
        d2_an = (embeds[anchors] - embeds[negatives]).square().sum(dim=1)
        losses = (d2_ap - d2_an + self.margin).relu()  # (T,)
        return losses.sum() / (losses > 0).sum().clamp(min=1)
