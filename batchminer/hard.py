"""Hard triplets: positives that are farther away than negatives."""

import torch
from torch import Tensor

from utilities.pairs import pairwise_distances
from utilities.structures import Triplets

from .base import Miner, any_in_row


class Hard(Miner):
    """Gives each anchor its farthest positive and its nearest negative.

    Source: Hermans, Beyer and Leibe, In Defense of the Triplet Loss for Person Re-Identification,
    2017, section 2, eq. 5. Distances are Euclidean, of the embeddings as they are. T = the number
    of images that have a positive and a negative.
    """

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        distances = pairwise_distances(embeds, references)  # (B, R)
        # Distances are in [0, max] or NaN, so that what is masked never ties with a candidate.
        distances.clamp_(max=torch.finfo(distances.dtype).max)
        positives = torch.where(positive, distances, -1.0).argmax(dim=1)  # (B,)
        negatives = torch.where(negative, distances, torch.inf).argmin(dim=1)
        anchors = (any_in_row(positive) & any_in_row(negative)).nonzero().squeeze(1)
        return Triplets(anchors, positives[anchors], negatives[anchors])


class Softhard(Miner):
    """Draws a positive beyond the nearest negative, and a negative before the farthest positive.

    Source: the code of Roth et al., ICML 2020. Positives with d(a, p) > min_n d(a, n) and negatives
    with d(a, n) < max_p d(a, p) are drawn uniformly; an anchor without them draws from all its
    positives and all its negatives. Distances and T as of ``Hard``.
    """

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        distances = pairwise_distances(embeds, references)  # (B, R)
        farthest = torch.where(positive, distances, -torch.inf).amax(dim=1, keepdim=True)
        nearest = torch.where(negative, distances, torch.inf).amin(dim=1, keepdim=True)
        easy = ~(farthest > nearest)  # (B, 1), and so where a distance is NaN
        positives = self.draw(positive & (easy | (distances > nearest)))  # (B,)
        negatives = self.draw(negative & (easy | (distances < farthest)))
        anchors = (any_in_row(positive) & any_in_row(negative)).nonzero().squeeze(1)
        return Triplets(anchors, positives[anchors], negatives[anchors])
