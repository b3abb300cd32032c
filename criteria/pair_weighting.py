"""General pair weighting: a pair loss as a value and a weight for each pair.

Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, CVPR 2019,
section 3: whatever a loss over similarities S_ij is, its gradient is that of Σ_ij w_ij S_ij with
the weights w_ij = ∂L/∂S_ij held fixed.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from utilities.pairs import pair_masks
from utilities.structures import References

from .base import PairCriterion
from .gradient import with_gradient


class PairWeighting(PairCriterion):
    """A loss over the inner products of a batch with itself or with other references.

    A subclass writes ``weigh`` and nothing else.
    """

    @abstractmethod
    def weigh(self, sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the weights ∂L/∂S, without a graph.

        Args:
            sims: S (B, R).
            positive, negative: (B, R) bool, which references are of the image's class and which of
                another; the image itself is neither.

        Returns:
            loss: scalar.
            weights: (B, R).
        """

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        with torch.no_grad():
            if references is None:
                loss, weights = self.weigh(embeds @ embeds.T, *pair_masks(labels))
                gradient = (weights + weights.T) @ embeds  # S_ij moves both of its images
            else:
                masks = pair_masks(labels, references.labels)
                loss, weights = self.weigh(embeds @ references.embeds.T, *masks)
                gradient = weights @ references.embeds
        return with_gradient(loss, embeds, gradient)


def masked_logsumexp(exponents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp of each row's entries in the mask, and its derivative.

    Through the softmax, which the derivative is: the row's largest entry x has the softmax
    exp(x - log Σ exp), no less than 1/R, so that its logarithm loses no digits. (On a CPU the
    softmax is also much the faster one where exponents underflow.)

    Args:
        exponents: (B, R).
        mask: (B, R) bool.

    Returns:
        values: (B, 1). A row without entries has the lowest float, which is finite.
        softmax: (B, R), each row of sum 1. It is 0 off the mask, but uniform in a row without
            entries, so that whatever it is multiplied with has to be 0 there.
    """
    exponents = torch.where(mask, exponents, torch.finfo(exponents.dtype).min)
    softmax = exponents.softmax(dim=1)
    peak = softmax.amax(dim=1, keepdim=True)
    return exponents.amax(dim=1, keepdim=True) - peak.log_(), softmax


def nonempty(values: Tensor) -> Tensor:
    """Which rows of ``masked_logsumexp`` had entries, from its values (B, 1)."""
    return values > torch.finfo(values.dtype).min


def mean_squared_length(embeds: Tensor) -> Tensor:
    """Mean over the rows of (B, D) of their squared length: 1 for unit rows."""
    return embeds.square().mean() * embeds.shape[1]
