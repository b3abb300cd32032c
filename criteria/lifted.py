"""Generalised lifted structure loss: Song et al., Deep Metric Learning via Lifted Structured
Feature Embedding, CVPR 2016, in the form of Hermans et al., In Defense of the Triplet Loss for
Person Re-Identification, 2017, eq. 9, where every positive counts.
"""

from torch import Tensor

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives, require_at_least
from .primitives import distances, mean_squared_length, nonempty, pair_logsumexp


class Lifted(PairCriterion):
    """Compares an anchor's farthest positives with its nearest negatives, each softly.

        L = 1/A Σ_i [ log Σ_{p ∈ P_i} exp(d_ip) + log Σ_{n ∈ N_i} exp(m - d_in) ]₊
            + l2 · 1/B Σ_i |x_i|²

    with Euclidean distances d. A counts the anchors that have both positives (P_i) and negatives
    (N_i).

    Args:
        neg_margin: m, in units of distance.
        l2: >= 0, weight of the embeddings' mean squared length; for unit rows that is a constant.
            The code of Roth et al., ICML 2020, has the length itself, not squared.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0.
    """

    def __init__(self, *, neg_margin: float = 1.0, l2: float = 0.005) -> None:
        super().__init__()
        require_at_least(0, neg_margin=neg_margin, l2=l2)
        self.neg_margin = neg_margin
        self.l2 = l2

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        d = distances(embeds, references)  # (B, R)
        positive, negative = positives_and_negatives(labels, references)
        scores = pair_logsumexp(d, positive, self.neg_margin - d, negative)  # (B,)
        lifted = scores.relu().sum() / nonempty(scores).sum().clamp(min=1)
        return lifted + self.l2 * mean_squared_length(embeds)
