"""Generalised lifted structure loss.

Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016, in the form
of Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017, eq. 9, where
every positive counts.
"""

import torch
from torch import Tensor

from utilities.pairs import pair_masks, pairwise_distances
from utilities.structures import References

from .base import PairCriterion
from .gradient import with_gradient
from .pair_weighting import masked_logsumexp, mean_squared_length, nonempty


class Lifted(PairCriterion):
    """Compares an anchor's farthest positives with its nearest negatives, each softly.

        L = 1/A Σ_i [ log Σ_{p ∈ P_i} exp(d_ip) + log Σ_{n ∈ N_i} exp(m - d_in) ]₊
            + l2 · 1/B Σ_i |x_i|²

    with Euclidean distances d. A counts the anchors that have both positives (P_i) and negatives
    (N_i). Two images at one place do not move each other: the distance has no gradient there.

    Args:
        neg_margin: m, in units of distance.
        l2: >= 0, weight of the embeddings' mean squared length. For unit rows that is a constant,
            which is added all the same. The code of Roth et al., ICML 2020, has the length itself,
            not squared.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0.

    Raises:
        ValueError: ``l2`` is negative.
    """

    def __init__(self, *, neg_margin: float = 1.0, l2: float = 0.005) -> None:
        super().__init__()
        if l2 < 0:
            raise ValueError(
                f"--loss_lifted_l2 {l2} would reward long embeddings; use 0 or a positive weight"
            )
        self.neg_margin = neg_margin
        self.l2 = l2

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        others, other_labels = references or (embeds, None)
        with torch.no_grad():
            distances = pairwise_distances(embeds, others)  # (B, R)
            loss, weights = self.weigh(distances, *pair_masks(labels, other_labels))
            # ∂d_ij/∂x_i = (x_i - x_j) / d_ij, and 0 where that divides by zero.
            weights = weights.div_(distances).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            if references is None:
                weights = weights + weights.T  # d_ij moves both of its images
            along = weights.sum(dim=1, keepdim=True) + 2 * self.l2 / len(embeds)
            gradient = along * embeds - weights @ others
            loss = loss + self.l2 * mean_squared_length(embeds)
        return with_gradient(loss, embeds, gradient)

    def weigh(self, distances: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """The loss without its regulariser, and its derivative with respect to the distances."""
        pulls, pull_softmax = masked_logsumexp(distances, positive)
        pushes, push_softmax = masked_logsumexp(self.neg_margin - distances, negative)
        n_anchors = (nonempty(pulls) & nonempty(pushes)).sum().clamp_(min=1)
        scores = pulls + pushes  # (B, 1)
        slopes = (scores > 0).to(scores.dtype) / n_anchors
        return scores.relu_().sum() / n_anchors, pull_softmax.sub_(push_softmax).mul_(slopes)
