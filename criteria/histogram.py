"""Histogram loss: Ustinova and Lempitsky, Learning Deep Embeddings with Histogram Loss, NIPS 2016,
equations 1 to 5.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives
from .primitives import cosines


class Histogram(PairCriterion):
    """The probability that a random negative pair is more similar than a random positive pair.

        L = Σ_r h⁻_r Σ_{q <= r} h⁺_q

    h⁺ and h⁻ are the histograms of the cosines of all positive and all negative pairs, each of sum
    1, over ``nbins`` nodes spread evenly over [-1, 1]. A pair's cosine is shared between its two
    neighbouring nodes in proportion to its nearness. Without positive or negative pairs L is zero.

    Args:
        nbins: number of nodes, >= 3 and odd, so that a cosine of 0 has one.

    Shapes: embeds (B, D) of any length, labels (B,) int64; returns a scalar in [0, 1].
    """

    def __init__(self, *, nbins: int = 65) -> None:
        super().__init__()
        if nbins < 3 or nbins % 2 == 0:
            raise ValueError(
                f"nbins must be odd and >= 3, so that a cosine of 0 has a node; got {nbins}"
            )
        self.nbins = nbins

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        positive, _ = positives_and_negatives(labels, references)
        h_neg, h_pos = soft_histograms(
            cosines(embeds, references), positive, self.nbins, itself=references is None
        )
        return h_neg @ h_pos.cumsum(dim=0)


def soft_histograms(cosines: Tensor, positive: Tensor, nbins: int, *, itself: bool) -> Tensor:
    """Return the histograms of the negative and of the positive pairs, (2, nbins), each of sum 1.

    O(pairs), where the code of Roth et al., ICML 2020, takes O(pairs · nbins).

    Args:
        cosines: (B, R).
        positive: (B, R) bool; the other pairs are negative.
        itself: leave out the diagonal, the images with themselves.
    """
    return _SoftHistograms.apply(cosines, positive, nbins, itself)


class _SoftHistograms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cosines: Tensor, positive: Tensor, nbins: int, itself: bool) -> Tensor:
        # Each cosine's distance from the first node in widths, (B, R), just short of the last one.
        half = (nbins - 1) / 2
        place = (cosines + 1).mul_(half)
        place.clamp_(0, 2 * half * (1 - torch.finfo(place.dtype).eps))

        # Three histograms in a row: negatives, positives, images with themselves.
        left = place.long().add_(positive.long(), alpha=nbins)
        if itself:
            left.fill_diagonal_(2 * nbins)
        share = place.frac_()  # of the right node
        # Each image has its own until they are summed, or all pairs would queue for the same bins.
        counts = place.new_zeros(len(cosines), 3 * nbins)
        counts.scatter_add_(1, left, 1 - share).scatter_add_(1, left + 1, share)
        counts = counts.sum(dim=0).view(3, nbins)[:2]
        n_pairs = counts.sum(dim=1, keepdim=True).clamp_(min=1)
        ctx.save_for_backward(left, half / n_pairs)
        return counts / n_pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None]:
        # A pair whose cosine rises by dS moves a share dS / width from its left to its right node.
        left, rates = ctx.saved_tensors
        steps = slopes.new_zeros(3, slopes.shape[1])
        steps[:2, :-1] = slopes.diff(dim=1) * rates
        return steps.view(-1).index_select(0, left.view(-1)).view_as(left), None, None, None
