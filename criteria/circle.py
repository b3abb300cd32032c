"""Circle loss: Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR
2020, eq. 6-8.
"""

import torch.nn.functional as F
from torch import Tensor

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives, require_finite, require_positive
from .primitives import nonempty, pair_logsumexp, similarities


class Circle(PairCriterion):
    """Weighs each similarity by how far it is from its optimum.

        L = 1/A Σ_i log( 1 + Σ_{n ∈ N_i} exp( γ α_in (S_in - m))
                           · Σ_{p ∈ P_i} exp(-γ α_ip (S_ip - (1 - m))) )

        α_in = [S_in + m]₊,  α_ip = [1 + m - S_ip]₊

    The α are constants for the gradient, as in the paper. A counts the anchors that have both
    positives (P_i) and negatives (N_i); the paper writes the loss of one anchor.

    Args:
        margin: m, in similarity: the relaxation, with the optimum at S_ip = 1 + m, S_in = -m.
        gamma: γ > 0, an inverse temperature.

    Shapes: embeds (B, D) unit rows (similarity is their inner product), labels (B,) int64; returns
    a scalar >= 0.
    """

    def __init__(self, *, margin: float = 0.25, gamma: float = 80.0) -> None:
        super().__init__()
        require_positive(gamma=gamma)
        require_finite(margin=margin)
        self.margin = margin
        self.gamma = gamma

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        sims, m = similarities(embeds, references), self.margin  # (B, R)
        positive, negative = positives_and_negatives(labels, references)
        pull_weights = (sims.detach() - (1 + m)).clamp_(max=0).mul_(self.gamma)  # -γ α_ip
        push_weights = (sims.detach() + m).clamp_(min=0).mul_(self.gamma)  # γ α_in
        pulls, pushes = pull_weights * (sims - (1 - m)), push_weights * (sims - m)
        scores = pair_logsumexp(pulls, positive, pushes, negative)  # (B,)
        return F.softplus(scores).sum() / nonempty(scores).sum().clamp(min=1)
