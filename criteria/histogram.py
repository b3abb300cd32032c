"""Histogram loss.

Ustinova and Lempitsky, Learning Deep Embeddings with Histogram Loss, NIPS 2016, equations 1 to 5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.pairs import pair_masks
from utilities.structures import References

from .base import PairCriterion
from .gradient import with_gradient


class Histogram(PairCriterion):
    """The probability that a random negative pair is more similar than a random positive pair.

        L = Σ_r h⁻_r Σ_{q <= r} h⁺_q

    h⁺ and h⁻ are the histograms of the cosines of all positive and all negative pairs, each of sum
    1, over ``nbins`` nodes spread evenly over [-1, 1]. A pair's cosine is shared between its two
    neighbouring nodes in proportion to its nearness, which makes the loss piecewise linear in the
    cosines. Without positive or without negative pairs it is zero.

    Embeddings of another length are normalised, since the nodes span the cosines. Each pair goes
    into its two bins directly, O(pairs) instead of O(pairs · nbins) as in the code of Roth et al.,
    ICML 2020.

    Args:
        nbins: number of nodes, odd so that a cosine of 0 has one; nbins - 1 intervals of width
            2 / (nbins - 1) lie between them, as in that code.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar in [0, 1].

    Raises:
        ValueError: ``nbins`` is even or below 3.
    """

    def __init__(self, *, nbins: int = 65) -> None:
        super().__init__()
        if nbins < 3 or nbins % 2 == 0:
            raise ValueError(
                f"--loss_histogram_nbins {nbins} leaves no node at cosine 0 between -1 and 1; "
                "use an odd number from 3 on"
            )
        self.nbins = nbins

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        with torch.no_grad():
            loss, gradient = self._loss_and_gradient(embeds, labels, references)
        return with_gradient(loss, embeds, gradient)

    def _loss_and_gradient(
        self, embeds: Tensor, labels: Tensor, references: References | None
    ) -> tuple[Tensor, Tensor]:
        """The loss and its derivative with respect to the embeddings, (B, D)."""
        lengths = torch.linalg.vector_norm(embeds, dim=1, keepdim=True).clamp_(min=1e-12)
        unit = others = embeds / lengths
        if references is not None:
            others = F.normalize(references.embeds, dim=1)
        positive, _ = pair_masks(labels, None if references is None else references.labels)

        # How many widths each cosine lies from the first node, (B, R). It stays just short of the
        # last one, so that every pair has a node to its left and one to its right.
        half = (self.nbins - 1) / 2
        place = (unit @ others.T).add_(1).mul_(half)
        place.clamp_(0, 2 * half * (1 - torch.finfo(place.dtype).eps))

        # Three histograms in a row: of negatives, of positives, of images with themselves.
        left = place.long().add_(positive.long(), alpha=self.nbins)
        if references is None:
            left.fill_diagonal_(2 * self.nbins)
        share = place.frac_()  # of the right node
        # Each image has its own until they are summed, or all pairs would queue for the same bins.
        counts = place.new_zeros(len(unit), 3 * self.nbins)
        counts.scatter_add_(1, left, 1 - share).scatter_add_(1, left + 1, share)
        counts = counts.sum(dim=0).view(3, self.nbins)
        n_pairs = counts.sum(dim=1, keepdim=True).clamp_(min=1)
        h_neg, h_pos, _ = counts / n_pairs  # (nbins,) each
        loss = h_neg @ h_pos.cumsum(dim=0)

        # A pair whose cosine rises by dS moves a share dS / width from its left to its right node.
        # On the way ∂L/∂h⁻_r = Σ_{q <= r} h⁺_q rises by h⁺ of the right node, and
        # ∂L/∂h⁺_q = Σ_{r >= q} h⁻_r falls by h⁻ of the left node. In a batch both images move.
        n_moving = 2 if references is None else 1
        slopes = torch.stack([h_pos.roll(-1), -h_neg, torch.zeros_like(h_neg)])
        slopes *= n_moving * half / n_pairs
        slopes = slopes.view(-1).index_select(0, left.view(-1)).view_as(left)  # (B, R)
        gradient = slopes @ others
        along = (gradient * unit).sum(dim=1, keepdim=True)
        # The length of an embedding does not matter: only what is across it has an effect.
        return loss, gradient.addcmul_(along, unit, value=-1).div_(lengths)
