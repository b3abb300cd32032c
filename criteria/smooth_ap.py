"""Smooth-AP loss: Brown, Xie, Kalogeiton and Zisserman, Smooth-AP: Smoothing the Path Towards
Large-Scale Image Retrieval, ECCV 2020, equations 7 and 8.
"""

import torch
from torch import Tensor

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives, require_positive
from .primitives import similarities


class SmoothAP(PairCriterion):
    """One minus the average precision of each image as a query, with ranks made smooth.

        L = 1/m Σ_a 1 - AP_a
        AP_a = 1/|P_a| Σ_{p ∈ P_a} (1 + Σ_{j ∈ P_a} G_jp) / (1 + Σ_{j ∈ P_a ∪ N_a} G_jp)
        G_jp = 1 / (1 + exp(-(S_aj - S_ap) / τ)) for j ≠ p

    G becomes a step as τ goes to 0. The numerator is then the rank of p among the positives P_a of
    the image, the denominator its rank among these and the negatives N_a. m counts the images that
    have positives; the others are left out.

    The authors' code needs classes of one size, in order, and counts an image as its own positive.
    Memory and time are O(T R) for T positive pairs and R references.

    Args:
        temperature: τ > 0, in similarity.

    Shapes: embeds (B, D) unit rows (similarity is their inner product), labels (B,) int64; returns
    a scalar in [0, 1).
    """

    def __init__(self, *, temperature: float = 0.01) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        sims = similarities(embeds, references)  # (B, R)
        if references is None:
            sims.fill_diagonal_(-torch.inf)  # an image is not in its own ranking
        positive, negative = positives_and_negatives(labels, references)
        anchors, positives = positive.nonzero(as_tuple=True)  # (T,), the one wait for the device

        s_aj = sims.index_select(0, anchors)  # (T, R)
        s_ap = s_aj.gather(1, positives[:, None])  # (T, 1)
        g = ((s_aj - s_ap) / self.temperature).sigmoid()  # (T, R)
        # One minus a pair's fraction is Σ_{j ∈ N_a} G_jp / (1 + Σ_j G_jp). At j = p, G is 1/2.
        misses = (g * negative.to(g.dtype).index_select(0, anchors)).sum(dim=1)  # (T,)
        n_positives = positive.sum(dim=1, dtype=g.dtype)  # (B,), |P_a|
        weights = 1 / (n_positives * n_positives.count_nonzero())[anchors]  # of each pair, sum 1
        return weights @ (misses / (0.5 + g.sum(dim=1)))
