"""Multi-similarity loss.

Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, CVPR 2019,
section 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .pair_weighting import PairWeighting, masked_logsumexp


class MultiSimilarity(PairWeighting):
    """Weighs each pair by how it compares with its anchor's other pairs.

        L = 1/B Σ_i  1/α log(1 + Σ_{p ∈ P_i} exp(-α (S_ip - λ⁺)))
                   + 1/β log(1 + Σ_{n ∈ N_i} exp( β (S_in - λ⁻)))

    P_i holds the positives of i that are less similar than its most similar negative plus the
    margin, N_i the negatives that are more similar than its least similar positive minus the
    margin. An anchor without positives or without negatives has neither. The image itself is left
    out by its place, not by its similarity, so that a duplicate counts.

    The code of Roth et al., CVPR 2022, averages the logarithms over the batch first and wraps each
    mean in one more softplus, 1/α softplus(mean_i log(1 + Σ_p …)) + 1/β softplus(…): it scales the
    gradients by a sigmoid in [0.5, 1) and never falls below log(2)/α + log(2)/β, 0.364 at the
    defaults. ``released=True`` gives that form, with which the weights of their commands were
    tuned.

    Args:
        pos_weight: α > 0, an inverse temperature.
        neg_weight: β > 0, an inverse temperature.
        margin: of the mining, in similarity.
        pos_thresh: λ⁺, in similarity; the paper has one λ for both.
        neg_thresh: λ⁻, in similarity.
        dim: axis of the batch's similarity matrix along which an anchor's pairs lie, 0 or 1. The
            matrix is symmetric, so that both are the same loss; it is kept for published commands.
        released: the released form instead of the published one.

    Shapes: embeds (B, D) unit rows (similarity is their inner product), labels (B,) int64; returns
    a scalar >= 0.

    Raises:
        ValueError: ``dim`` is neither 0 nor 1.
    """

    def __init__(
        self,
        *,
        pos_weight: float = 2.0,
        neg_weight: float = 40.0,
        margin: float = 0.1,
        pos_thresh: float = 0.5,
        neg_thresh: float = 0.5,
        dim: int = 0,
        released: bool = False,
    ) -> None:
        super().__init__()
        if dim not in (0, 1):
            raise ValueError(f"--loss_multisimilarity_dim {dim} is no axis of a matrix; use 0 or 1")
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight
        self.margin = margin
        self.pos_thresh = pos_thresh
        self.neg_thresh = neg_thresh
        self.dim = dim
        self.released = released

    def weigh(self, sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        # An anchor without positives or negatives has an infinite bound that no pair passes.
        hardest_positive = torch.where(positive, sims, torch.inf).amin(dim=1, keepdim=True)
        hardest_negative = torch.where(negative, sims, -torch.inf).amax(dim=1, keepdim=True)
        positive = positive & (sims < hardest_negative + self.margin)
        negative = negative & (sims > hardest_positive - self.margin)

        pulls, pull_softmax = masked_logsumexp(
            (sims - self.pos_thresh).mul_(-self.pos_weight), positive
        )
        pushes, push_softmax = masked_logsumexp(
            (sims - self.neg_thresh).mul_(self.neg_weight), negative
        )
        pull = F.softplus(pulls).mean()  # log(1 + Σ exp) is the softplus of log Σ exp
        push = F.softplus(pushes).mean()
        pull_slopes = pulls.sigmoid_() / len(sims)  # (B, 1), d pull / d pulls
        push_slopes = pushes.sigmoid_() / len(sims)
        if self.released:
            pull_slopes, push_slopes = pull_slopes * pull.sigmoid(), push_slopes * push.sigmoid()
            pull, push = F.softplus(pull), F.softplus(push)
        weights = push_softmax.mul_(push_slopes).sub_(pull_softmax.mul_(pull_slopes))
        return pull / self.pos_weight + push / self.neg_weight, weights
