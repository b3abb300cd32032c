"""The pair mining of the multi-similarity loss: Wang et al., Multi-Similarity Loss with General
Pair Weighting for Deep Metric Learning, CVPR 2019, in which it is the first step of the loss,
before the weighting.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.structures import Triplets

from .base import Miner, every_triplet


class MultiSimilarity(Miner):
    """Takes the pairs that violate a margin against the anchor's hardest pair of the other kind.

    A positive p is mined if S_ap < max_n S_an + margin, a negative n if S_an > min_p S_ap - margin,
    with cosine similarities S. The triplets are each of an anchor's mined positives with each of
    its mined negatives; the paper weighs the two sets separately.

    Args:
        margin: ε, in cosine similarity.

    T <= that of ``Lifted``. O(B R + T + P R) memory with P mined positive pairs.
    """

    def __init__(self, seed: int = 0, *, margin: float = 0.1) -> None:
        super().__init__(seed)
        if not math.isfinite(margin):
            raise ValueError(f"margin must be finite; got {margin:g}")
        self.margin = margin

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        units = F.normalize(embeds, dim=1)
        others = units if references is embeds else F.normalize(references, dim=1)
        sims = units @ others.T  # (B, R)
        least = torch.where(positive, sims, torch.inf).amin(dim=1, keepdim=True)
        most = torch.where(negative, sims, -torch.inf).amax(dim=1, keepdim=True)
        return every_triplet(
            positive & (sims - self.margin < most), negative & (sims + self.margin > least)
        )
