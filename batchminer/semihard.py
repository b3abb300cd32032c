"""Semi-hard negatives: Schroff, Kalenichenko and Philbin, FaceNet: A Unified Embedding for Face
Recognition and Clustering, CVPR 2015, section 3.2.
"""

import math

import torch
from torch import Tensor

from utilities.pairs import pairwise_distances

from .base import NegativeMiner


class Semihard(NegativeMiner):
    """Draws a negative that is farther than the positive, but by less than the margin.

    Negatives n with d(a, p) < d(a, n) < d(a, p) + margin are drawn uniformly; a pair that has none
    draws from all negatives, as in Roth et al., ICML 2020. Distances are Euclidean (in the paper
    squared), of the embeddings as they are.

    Args:
        margin: in units of distance, >= 0.
    """

    def __init__(self, seed: int = 0, *, margin: float = 0.2) -> None:
        super().__init__(seed)
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin must be finite and >= 0; got {margin:g}")
        self.margin = margin

    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        distances = pairwise_distances(embeds, references).index_select(0, anchors)  # (T, R)
        beyond = distances.sub_(distances.gather(1, positives[:, None]))  # d_an - d_ap
        negatives = negative[anchors].to(beyond.dtype)
        near = beyond.clone().lt_(self.margin)  # 0 or 1
        semihard = beyond.gt_(0).mul_(near).mul_(negatives)
        return torch.where(semihard.amax(dim=1, keepdim=True) > 0, semihard, negatives)
