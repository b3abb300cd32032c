"""N-pair loss.

Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NIPS 2016, section 3.2,
N-pair-mc.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.structures import References

from .pair_weighting import PairWeighting, masked_logsumexp, mean_squared_length


class NPair(PairWeighting):
    """Asks of each positive pair to be more similar than all the anchor's negatives at once.

        L = 1/T Σ_(a,p) log(1 + Σ_n exp(S_an - S_ap)) + l2 · 1/B Σ_i |x_i|²

    over the T ordered pairs (a, p) of one class and all negatives n of a. The paper has two images
    of each class, and the second ones of the other classes as negatives; here any number of images
    per class is used in full.

    Args:
        l2: >= 0, weight of the embeddings' mean squared length. For unit rows that is a constant,
            which is added all the same. The code of Roth et al., ICML 2020, has the length itself,
            not squared.

    Shapes: embeds (B, D), of any length (similarity is their inner product), labels (B,) int64;
    returns a scalar >= 0.

    Raises:
        ValueError: ``l2`` is negative.
    """

    def __init__(self, *, l2: float = 0.005) -> None:
        super().__init__()
        if l2 < 0:
            raise ValueError(
                f"--loss_npair_l2 {l2} would reward long embeddings; use 0 or a positive weight"
            )
        self.l2 = l2

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        pairs = super().forward(embeds, labels, references)
        return pairs + self.l2 * mean_squared_length(embeds)

    def weigh(self, sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        return n_pair(sims, positive, negative)


def n_pair(sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """1/T Σ_(a,p) log(1 + Σ_n exp(S_an - S_ap)) and its derivative with respect to S (B, R).

    The sum over negatives is the anchor's alone, so all its pairs share it: each term is
    softplus(log Σ_n exp(S_an) - S_ap).
    """
    n_pairs = positive.count_nonzero().clamp_(min=1)
    totals, softmax = masked_logsumexp(sims, negative)
    gaps = (totals - sims).masked_fill_(~positive, -torch.inf)  # (B, R)
    loss = F.softplus(gaps).sum() / n_pairs
    slopes = gaps.sigmoid_().div_(n_pairs)  # (B, R), -dL/dS of the positive pairs
    return loss, softmax.mul_(slopes.sum(dim=1, keepdim=True)).sub_(slopes)
