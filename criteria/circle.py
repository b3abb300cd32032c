"""Circle loss.

Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020, eq. 6-8.
"""

import torch.nn.functional as F
from torch import Tensor

from .pair_weighting import PairWeighting, masked_logsumexp, nonempty


class Circle(PairWeighting):
    """Weighs each similarity by how far it is from where it should be.

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

    Raises:
        ValueError: ``gamma`` is not positive.
    """

    def __init__(self, *, margin: float = 0.25, gamma: float = 80.0) -> None:
        super().__init__()
        if gamma <= 0:
            raise ValueError(f"--loss_circle_gamma {gamma} scales similarities; use one above 0")
        self.margin = margin
        self.gamma = gamma

    def weigh(self, sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        m = self.margin
        pull_slopes = (sims - (1 + m)).clamp_(max=0).mul_(self.gamma)  # (B, R), -γ α_ip
        push_slopes = (sims + m).clamp_(min=0).mul_(self.gamma)  # (B, R), γ α_in
        pulls, pull_softmax = masked_logsumexp(pull_slopes * (sims - (1 - m)), positive)
        pushes, push_softmax = masked_logsumexp(push_slopes * (sims - m), negative)

        n_anchors = (nonempty(pulls) & nonempty(pushes)).sum().clamp_(min=1)
        scores = pulls + pushes  # (B, 1), the logarithm of the product of sums
        loss = F.softplus(scores).sum() / n_anchors
        weights = (pull_softmax.mul_(pull_slopes)).addcmul_(push_softmax, push_slopes)
        return loss, weights.mul_(scores.sigmoid_() / n_anchors)
