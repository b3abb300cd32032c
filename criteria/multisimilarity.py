"""Multi-similarity loss: Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep
Metric Learning, CVPR 2019, section 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives, require_finite, require_positive
from .primitives import similarities, soft_hinge_mean


class MultiSimilarity(PairCriterion):
    """Weighs each pair by how it compares with its anchor's other pairs.

        L = 1/B Σ_i  1/α log(1 + Σ_{p ∈ P_i} exp(-α (S_ip - λ⁺)))
                   + 1/β log(1 + Σ_{n ∈ N_i} exp( β (S_in - λ⁻)))

    P_i holds the positives of i that are less similar than its most similar negative plus the
    margin, N_i the negatives that are more similar than its least similar positive minus the
    margin. Both are empty for an anchor without positives or without negatives.

    The code of Roth et al., CVPR 2022, wraps each mean of the logarithms in one more softplus,
    1/α softplus(mean_i log(1 + Σ_p …)) + 1/β softplus(…), which scales the gradients by a sigmoid
    in [0.5, 1). The weights of their commands were tuned with that form, ``released=True``.

    Args:
        pos_weight, neg_weight: α, β > 0, inverse temperatures.
        margin: of the mining, in similarity.
        pos_thresh, neg_thresh: λ⁺, λ⁻, in similarity; the paper has one λ for both.
        dim: 0 or 1, without effect; kept for published commands.
        released: use the released form instead of the published one.

    Shapes: embeds (B, D) unit rows (similarity is their inner product), labels (B,) int64; returns
    a scalar >= 0.
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
            raise ValueError(f"dim must be 0 or 1; got {dim}")
        require_positive(pos_weight=pos_weight, neg_weight=neg_weight)
        require_finite(margin=margin, pos_thresh=pos_thresh, neg_thresh=neg_thresh)
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight
        self.margin = margin
        self.pos_thresh = pos_thresh
        self.neg_thresh = neg_thresh
        self.dim = dim
        self.released = released

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        sims = similarities(embeds, references)  # (B, R)
        positive, negative = self.hard_pairs(sims, *positives_and_negatives(labels, references))
        pull = soft_hinge_mean(self.pos_thresh - sims, positive, self.pos_weight)
        push = soft_hinge_mean(sims - self.neg_thresh, negative, self.neg_weight)
        if self.released:
            pull = F.softplus(self.pos_weight * pull) / self.pos_weight
            push = F.softplus(self.neg_weight * push) / self.neg_weight
        return pull + push

    @torch.no_grad()
    def hard_pairs(self, sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masks P and N, (B, R), of the pairs that violate the margin."""
        # An anchor without positives or negatives has an infinite bound that no pair passes.
        least = torch.where(positive, sims, torch.inf).amin(dim=1, keepdim=True)
        most = torch.where(negative, sims, -torch.inf).amax(dim=1, keepdim=True)
        return positive & (sims < most + self.margin), negative & (sims > least - self.margin)
