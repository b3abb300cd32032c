"""Soft-hard triplets: positives farther away than negatives.

Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning,
ICML 2020, as in their code.
"""

import torch
from torch import Tensor

from utilities.pairs import pairwise_distances
from utilities.structures import Triplets

from .base import Miner, any_in_row


class Softhard(Miner):
    """Draws a positive beyond the nearest negative, and a negative before the farthest positive.

    Positives with d(a, p) > min_n d(a, n) and negatives with d(a, n) < max_p d(a, p) are drawn
    uniformly; an anchor without them draws from all its positives and all its negatives. Distances
    are Euclidean, of the embeddings as they are.

    T = the number of images that have a positive and a negative. O(B R) memory.
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
