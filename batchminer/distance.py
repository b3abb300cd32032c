"""Distance-weighted sampling.

Wu, Manmatha, Smola and Krähenbühl, Sampling Matters in Deep Embedding Learning, ICCV 2017,
section 4.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.pairs import pairwise_distances

from .base import NegativeMiner


class Distance(NegativeMiner):
    """Draws negatives uniformly over *distance* instead of uniformly over images.

    Random points of a sphere in D dimensions lie at distance d with density
    q(d) ~ d^(D-2) (1 - d²/4)^((D-3)/2), nearly all of them around sqrt(2). A negative is drawn with
    weight 1/q(d), so that near and far ones are met alike.

    Distances are those of the embeddings on the unit sphere, where q is defined: embeddings of
    another length are normalised first. An anchor without any negative below ``upper_cutoff`` draws
    uniformly from all its negatives. The code of Roth et al., ICML 2020, has the same flag and does
    not apply the upper cutoff; one above 2 gives that.

    Args:
        lower_cutoff: nearer negatives weigh as much as those at this distance, in (0, 2]; it bounds
            the variance of the gradient.
        upper_cutoff: negatives at or beyond it are not drawn, since the margin loss is zero there.
    """

    def __init__(
        self, seed: int = 0, *, lower_cutoff: float = 0.5, upper_cutoff: float = 1.4
    ) -> None:
        super().__init__(seed)
        self.lower_cutoff = lower_cutoff
        self.upper_cutoff = upper_cutoff

    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        dim = embeds.shape[1]
        distances = pairwise_distances(
            F.normalize(embeds, dim=1), F.normalize(references, dim=1)
        )  # (B, B)
        eligible = negative & (distances < self.upper_cutoff)
        clipped = distances.clamp(min=self.lower_cutoff)
        # For D in the hundreds 1/q spans more than a float's range: stay in logarithms until the
        # row's maximum is off, which is what a softmax does. At d = 2 the last factor would be 0.
        remaining = (1 - clipped.square() / 4).clamp(min=torch.finfo(clipped.dtype).eps)
        log_weights = (2 - dim) * clipped.log() - (dim - 3) / 2 * remaining.log()
        weights = log_weights.masked_fill(~eligible, -torch.inf).softmax(dim=1)
        fallback = negative.to(weights.dtype)
        return torch.where(eligible.any(dim=1, keepdim=True), weights, fallback)[anchors]
