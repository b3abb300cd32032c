"""N-pair loss: Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NIPS
2016, section 3.2, N-pair-mc.
"""

from torch import Tensor

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives, require_at_least
from .primitives import masked_logsumexp, mean_squared_length, similarities, softplus_mean


class NPair(PairCriterion):
    """Makes each positive pair more similar than all the anchor's negatives at once.

        L = 1/T Σ_(a,p) log(1 + Σ_n exp(S_an - S_ap)) + l2 · 1/B Σ_i |x_i|²

    over the T ordered pairs (a, p) of one class and all negatives n of a. The paper has two images
    of each class, and the second ones of the other classes as negatives; here any number of images
    per class is used in full.

    Args:
        l2: >= 0, weight of the embeddings' mean squared length; for unit rows that is a constant.
            The code of Roth et al., ICML 2020, has the length itself, not squared.

    Shapes: embeds (B, D), of any length (similarity is their inner product), labels (B,) int64;
    returns a scalar >= 0.
    """

    def __init__(self, *, l2: float = 0.005) -> None:
        super().__init__()
        require_at_least(0, l2=l2)
        self.l2 = l2

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        sims = similarities(embeds, references)  # (B, R)
        pairs = n_pair(sims, *positives_and_negatives(labels, references))
        return pairs + self.l2 * mean_squared_length(embeds)


def n_pair(sims: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return 1/T Σ_(a,p) log(1 + Σ_n exp(S_an - S_ap)) of S and masks (B, R)."""
    totals = masked_logsumexp(sims, negative)[:, None]  # (B, 1), log Σ_n exp(S_an)
    return softplus_mean(totals - sims, positive)
