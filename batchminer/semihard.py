"""Semi-hard negatives.

Schroff, Kalenichenko and Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering,
CVPR 2015, section 3.2.
"""

import torch
from torch import Tensor

from utilities.pairs import pairwise_distances

from .base import NegativeMiner


class Semihard(NegativeMiner):
    """Draws a negative that is farther than the positive, but by less than the margin.

    Eligible are the negatives n with d(a, p) < d(a, n) < d(a, p) + margin, all equally likely; a
    pair that has none draws from all negatives, as in Roth et al., ICML 2020. Distances are
    Euclidean (in the paper squared) and of the embeddings as they are.

    Args:
        margin: in units of distance, > 0.
    """

    def __init__(self, seed: int = 0, *, margin: float = 0.2) -> None:
        super().__init__(seed)
        self.margin = margin

    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        distances = pairwise_distances(embeds, references)  # (B, B)
        negatives = negative[anchors]  # (T, B)
        beyond = distances[anchors] - distances[anchors, positives][:, None]  # d_an - d_ap, (T, B)
        semihard = negatives & (beyond > 0) & (beyond < self.margin)
        return torch.where(semihard.any(dim=1, keepdim=True), semihard, negatives).to(embeds.dtype)
