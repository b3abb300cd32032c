"""Multi-similarity loss.

Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, CVPR 2019,
section 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Criterion


class MultiSimilarity(Criterion):
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
        dim: axis of the similarity matrix along which an anchor's pairs lie, 0 or 1, in mining and
            in loss. The matrix is symmetric, so both give the same loss.
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

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        sims = embeds @ embeds.T  # (B, B)
        itself = torch.eye(len(sims), dtype=torch.bool, device=sims.device)
        same = labels[:, None] == labels
        positive, negative = self._mine(sims.detach(), same & ~itself, ~same)

        # No pair lies on the diagonal, so the 1 of log(1 + Σ exp) can: exp(0) there, 0 elsewhere.
        # Every row's log-sum-exp then has a finite term and none overflows.
        one = torch.zeros_like(sims).masked_fill_(~itself, -torch.inf)
        pulls = -self.pos_weight * (sims - self.pos_thresh)
        pushes = self.neg_weight * (sims - self.neg_thresh)
        pull = torch.where(positive, pulls, one).logsumexp(self.dim)  # (B,)
        push = torch.where(negative, pushes, one).logsumexp(self.dim)  # (B,)

        if self.released:
            pull, push = F.softplus(pull.mean()), F.softplus(push.mean())
        return pull.mean() / self.pos_weight + push.mean() / self.neg_weight

    def _mine(self, sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Of the pairs in the (B, B) masks, those that violate the margin."""
        hardest_positive = sims.masked_fill(~positive, torch.inf).amin(self.dim, keepdim=True)
        hardest_negative = sims.masked_fill(~negative, -torch.inf).amax(self.dim, keepdim=True)
        return (
            positive & (sims - self.margin < hardest_negative),
            negative & (sims + self.margin > hardest_positive),
        )
