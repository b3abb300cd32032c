"""Supervised contrastive loss: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2
(L_out, the mean over positives outside the logarithm).
"""

from torch import Tensor

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives, require_positive
from .primitives import masked_logsumexp, similarities


class SupCon(PairCriterion):
    """Classifies each image among all others; every image of its class is a right answer.

        L = 1/A Σ_i  -1/|P_i| Σ_{p ∈ P_i} log( exp(S_ip / τ) / Σ_{k ≠ i} exp(S_ik / τ) )

    P_i holds the other images of the class of i, and A counts the anchors that have any; the others
    are left out. The paper sums over anchors, its code averages; there every anchor has a positive,
    since both views of an image are in one batch.

    Args:
        temperature: τ > 0.

    Shapes: embeds (B, D) unit rows (similarity is their inner product), labels (B,) int64; returns
    a scalar >= 0.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        logits = similarities(embeds, references) / self.temperature  # (B, R)
        positive, negative = positives_and_negatives(labels, references)
        totals = masked_logsumexp(logits, positive | negative)  # (B,)
        n_positives = positive.count_nonzero(dim=1)  # (B,), |P_i|
        has_positives = (n_positives > 0).to(logits.dtype)
        n_anchors = has_positives.sum().clamp(min=1)
        # The mean over an anchor's positives and over anchors, as one weight for each pair.
        weights = positive / (n_positives * n_anchors).clamp(min=1)[:, None]  # (B, R)
        return totals @ (has_positives / n_anchors) - (weights * logits).sum()
