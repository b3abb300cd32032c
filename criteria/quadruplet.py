"""Quadruplet loss: Chen, Chen, Zhang and Huang, Beyond Triplet Loss: a Deep Quadruplet Network for
Person Re-identification, CVPR 2017, eq. 5.
"""

import torch
from torch import Tensor

from batchminer import Miner
from utilities.structures import References

from .base import PairCriterion, require_at_least
from .primitives import chosen_distances, hinge_mean


class Quadruplet(PairCriterion):
    """Makes positives nearer than negatives, and than negatives of another anchor.

        L = 1/A₁ Σ [ d_ap² - d_an² + α₁ ]₊  +  1/A₂ Σ [ d_ap² - d_mn² + α₂ ]₊

    with Euclidean distances d, over the mined triplets (a, p, n). Each gets a second negative m,
    drawn uniformly from the images of neither the anchor's nor the negative's class, by the miner's
    generator; the paper sums over all of them. A triplet without such an image counts in the first
    term alone. A₁ and A₂ count the active terms, at least 1 each; the paper sums.

    The code of Roth et al., ICML 2020, does not square the distances, averages over all triplets,
    and takes another triplet's *position* for m, an image of any class.

    Args:
        miner: chooses the triplets, and draws the second negatives.
        margin_alpha_1, margin_alpha_2: α₁, α₂ in units of squared distance, >= 0; the paper has
            α₂ < α₁.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0, 0 without any triplet. Both
    negatives are references, so that against a memory the second term only pulls.
    """

    def __init__(
        self, miner: Miner, *, margin_alpha_1: float = 0.2, margin_alpha_2: float = 0.2
    ) -> None:
        super().__init__()
        require_at_least(0, margin_alpha_1=margin_alpha_1, margin_alpha_2=margin_alpha_2)
        self.miner = miner
        self.margin_alpha_1 = margin_alpha_1
        self.margin_alpha_2 = margin_alpha_2

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        anchors, positives, negatives = self.miner(embeds, labels, references)  # (T,) each
        others = torch.stack((positives, negatives))
        z, z_labels = references or (embeds, labels)
        seconds, found = self._second_negatives(labels[anchors], z_labels[negatives], z_labels)
        d2_ap, d2_an = chosen_distances(embeds, references, anchors, others, squared=True)
        (d2_mn,) = chosen_distances(z, None, negatives, seconds[None], squared=True)
        near = hinge_mean(d2_ap - d2_an + self.margin_alpha_1)
        far = hinge_mean(torch.where(found, d2_ap - d2_mn + self.margin_alpha_2, 0))
        return near + far

    def _second_negatives(
        self, first: Tensor, second: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return an image of neither class for each of T pairs, and whether there is one."""
        # In the images sorted by label the two classes are two stretches: a random number counts
        # through the rest and skips them. O(T) memory, where a mask takes O(T R).
        ordered, order = labels.sort()
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        low_start = torch.searchsorted(ordered, low)
        low_size = torch.searchsorted(ordered, low, right=True) - low_start
        high_start = torch.searchsorted(ordered, high)
        high_size = torch.searchsorted(ordered, high, right=True) - high_start
        high_size.masked_fill_(low == high, 0)  # one stretch, not two

        rest = len(labels) - low_size - high_size  # (T,)
        chance = torch.rand(
            len(rest), device=labels.device, generator=self.miner.generator(labels.device)
        )
        places = (chance * rest).long()
        places += (places >= low_start) * low_size
        places += (places >= high_start) * high_size
        return order[places.clamp_(max=len(labels) - 1)], rest > 0
