"""What the losses on mined tuples share: the distances of chosen pairs, the mean of hinges.

Each comes with its derivative, to be joined with the loss by ``criteria.gradient.with_gradient``: a
loss of a few hundred pairs is a few dozen small tensor operations, and automatic differentiation
would double them. All of it is to be called under ``torch.no_grad()``.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from utilities.pairs import pairwise_distances
from utilities.structures import References

# Share of the (B, R) pairs from which on the whole matrix costs less than the pairs one by one, as
# measured on a CPU for B of 112 and 512, D of 128 and 512.
MATRIX_SHARE = 0.05


class PairDistances(ABC):
    """Euclidean distances of chosen pairs, and what they hand back to the embeddings.

        d_kt = |x_{a_t} - z_{o_kt}|,  or its square

    Attributes:
        values: (K, T) distances or squared distances.
        squared: which of the two.
    """

    values: Tensor
    squared: bool

    @abstractmethod
    def gradient(self, slopes: Tensor) -> Tensor:
        """dL/dx (B, D) from dL/dvalues (K, T). A distance of 0 has none."""

    def weights(self, slopes: Tensor) -> Tensor:
        """w (K, T) such that a pair's part in dL/dx_a is w (x_a - z_o)."""
        if self.squared:
            return 2 * slopes
        return slopes / self.values.masked_fill(self.values == 0, torch.inf)


def pair_distances(
    embeds: Tensor,
    references: References | None,
    anchors: Tensor,
    others: Tensor,
    *,
    squared: bool = False,
) -> PairDistances:
    """The distances of T anchors from K others each, whichever way is cheaper.

    Few pairs are compared by the differences of their rows, with every digit of a small distance.
    Many, such as the T = B (B - 2) triplets of a whole batch, would take K T D memory: theirs are
    read from the (B, R) matrix, which is worked out in double precision for the digits' sake.
    Distances below 1e-6 of the longest embedding count as 0 there.

    Args:
        embeds: x (B, D), float32 or float64.
        references: z, R of them and without gradient; None is the batch itself, which gets the
            gradient of both ends of a pair.
        anchors: a (T,) int64 in [0, B).
        others: o (K, T) int64 in [0, R).
        squared: squared distances.
    """
    itself = references is None
    z = embeds if references is None else references.embeds
    dense = others.numel() > MATRIX_SHARE * len(embeds) * len(z)
    kind = _FromMatrix if dense else _FromRows
    return kind(embeds, z, anchors, others, itself=itself, squared=squared)


def hinge_mean(violations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the positive violations, 0 where there is none, and its derivative.

    Args:
        violations: of any shape.

    Returns:
        loss: scalar >= 0; slopes: dloss/dviolations, one over their number where positive, else 0.
    """
    slopes = (violations > 0).to(violations.dtype)
    slopes /= slopes.sum().clamp_(min=1)
    return (slopes * violations).sum(), slopes


class _FromRows(PairDistances):
    def __init__(
        self, x: Tensor, z: Tensor, anchors: Tensor, others: Tensor, *, itself: bool, squared: bool
    ) -> None:
        self.squared, self.itself = squared, itself
        self.anchors, self.others, self.n_embeds = anchors, others.reshape(-1), len(x)
        self.differences = z.index_select(0, self.others).view(*others.shape, x.shape[1])
        self.differences -= x.index_select(0, anchors)  # z - x, (K, T, D)
        distances = torch.linalg.vector_norm(self.differences, dim=2)
        self.values = distances.square_() if squared else distances

    def gradient(self, slopes: Tensor) -> Tensor:
        pulls = self.differences * self.weights(slopes)[:, :, None]  # dL/dz, (K, T, D)
        gradient = pulls.new_zeros(self.n_embeds, pulls.shape[2])
        gradient.index_add_(0, self.anchors, pulls.sum(dim=0), alpha=-1)
        if self.itself:
            gradient.index_add_(0, self.others, pulls.flatten(0, 1))
        return gradient


class _FromMatrix(PairDistances):
    def __init__(
        self, x: Tensor, z: Tensor, anchors: Tensor, others: Tensor, *, itself: bool, squared: bool
    ) -> None:
        self.squared, self.itself, self.dtype = squared, itself, x.dtype
        self.x = x.double()
        self.z = self.x if itself else z.double()
        distances = pairwise_distances(self.x, self.z)  # (B, R)
        longest = torch.linalg.vector_norm(self.x, dim=1).amax()
        distances.masked_fill_(distances < 1e-6 * longest, 0)
        self.places = anchors * len(z) + others  # (K, T), in the flattened matrix
        chosen = distances.view(-1).index_select(0, self.places.view(-1)).view(others.shape)
        self.values = (chosen.square_() if squared else chosen).to(x.dtype)

    def gradient(self, slopes: Tensor) -> Tensor:
        # dL/dx_i = Σ_j w_ij (x_i - z_j), w summed over the repetitions of a pair.
        weights = self.weights(slopes).double()
        w = self.x.new_zeros(len(self.x) * len(self.z))
        w.index_add_(0, self.places.view(-1), weights.view(-1))
        w = w.view(len(self.x), len(self.z))
        if self.itself:
            w = w + w.T
        gradient = torch.addmm(w.sum(dim=1, keepdim=True) * self.x, w, self.z, alpha=-1)
        return gradient.to(self.dtype)
