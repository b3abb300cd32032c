"""Differentiable operations that the losses are written with, each with its derivative by hand.

Automatic differentiation keeps and walks back through every elementwise step over the (B, R) pairs;
here each operation is one step of the graph. All of them can be differentiated once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from utilities.pairs import pairwise_distances
from utilities.structures import References

MATRIX_SHARE = (
    0.05  # of the (B, R) pairs, above which their whole matrix costs less, measured on a CPU
)


def similarities(embeds: Tensor, references: References | None = None) -> Tensor:
    """Return the inner products S_ij = x_i·z_j, (B, R), of a batch with itself or with references.

    Args:
        embeds: x (B, D).
        references: z, R of them and without gradient; None compares the batch with itself, and then
            S_ij has a gradient for both of its images.
    """
    return _Similarities.apply(embeds, _others(embeds, references), references is None)


def cosines(embeds: Tensor, references: References | None = None) -> Tensor:
    """Return the cosines of x_i and z_j, arguments as of ``similarities``; 0 for a row of zeros."""
    return _Cosines.apply(embeds, _others(embeds, references), references is None)


def distances(embeds: Tensor, references: References | None = None) -> Tensor:
    """Return the Euclidean distances |x_i - z_j|, arguments as of ``similarities``.

    A distance of 0 has the gradient 0.
    """
    return _Distances.apply(embeds, _others(embeds, references), references is None)


def chosen_distances(
    embeds: Tensor,
    references: References | None,
    anchors: Tensor,
    others: Tensor,
    *,
    squared: bool = False,
) -> Tensor:
    """Return the Euclidean distances of T anchors from K others each, d_kt = |x_{a_t} - z_{o_kt}|.

    A few pairs are compared by the differences of their rows, which keep every digit of a small
    distance but take K T D memory. Many are read from the (B, R) matrix in double precision, where
    distances below 1e-6 of the longest embedding count as 0. A distance of 0 has the gradient 0.

    Args:
        embeds: x (B, D), float32 or float64.
        references: z, as of ``similarities``.
        anchors: a (T,) int64 in [0, B).
        others: o (K, T) int64 in [0, R).
        squared: return squared distances.

    Returns:
        (K, T).
    """
    z = _others(embeds, references)
    many = others.numel() > MATRIX_SHARE * len(embeds) * len(z)
    function = _DistancesFromMatrix if many else _DistancesOfRows
    return function.apply(embeds, z, anchors, others, references is None, squared)


def masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """Return log Σ_j exp(v_ij), (B,), over each row's entries in the mask; both are (B, R).

    A row without entries has the lowest float, which is finite, and no gradient.
    """
    return _MaskedLogSumExp.apply(values, mask)


def pair_logsumexp(pulls: Tensor, positive: Tensor, pushes: Tensor, negative: Tensor) -> Tensor:
    """Return log Σ_p Σ_n exp(u_ip + v_in), (B,), over each row's positives p and negatives n.

    A row without positives or without negatives has the lowest float or -inf.
    """
    return masked_logsumexp(pulls, positive) + masked_logsumexp(pushes, negative)


def nonempty(values: Tensor) -> Tensor:
    """Return a mask of the results of ``masked_logsumexp`` or ``pair_logsumexp`` with entries."""
    return values > torch.finfo(values.dtype).min


def soft_hinge_mean(violations: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return 1/B Σ_i 1/s log(1 + Σ_j exp(s v_ij)), the sum over each row's entries in the mask.

    It tends to the mean of [max_j v_ij]₊ as the scale s > 0 grows. v and the mask are (B, R).
    """
    return _SoftHingeMean.apply(violations, mask, scale)


def softplus_mean(violations: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of log(1 + exp(v_ij)) over the entries of (B, R) in the mask; 0 of none."""
    return _SoftplusMean.apply(violations, mask)


def hinge_mean(violations: Tensor) -> Tensor:
    """Return the mean of the positive violations, of any shape; 0 where there are none."""
    return _HingeMean.apply(violations)


def mean_squared_length(embeds: Tensor) -> Tensor:
    """Return the mean over the rows of (B, D) of their squared length: 1 for unit rows."""
    return _MeanSquaredLength.apply(embeds)


def _others(embeds: Tensor, references: References | None) -> Tensor:
    return embeds if references is None else references.embeds


class _Similarities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, itself: bool) -> Tensor:
        ctx.save_for_backward(z)
        ctx.itself = itself
        return x @ z.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        if ctx.itself:  # S_ij moves both of its images; one product does for both
            slopes = _plus_transposed(slopes)
        return slopes @ z, None, None


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, itself: bool) -> Tensor:
        lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=1e-12)
        unit_x = x / lengths
        unit_z = unit_x if itself else F.normalize(z, dim=1)
        ctx.save_for_backward(lengths, unit_x, unit_z)
        ctx.itself = itself
        return unit_x @ unit_z.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        lengths, unit_x, unit_z = ctx.saved_tensors
        gradient = (_plus_transposed(slopes) if ctx.itself else slopes) @ unit_z
        # The length of an embedding does not matter: only what is across it has an effect.
        along = (gradient * unit_x).sum(dim=1, keepdim=True)
        return gradient.addcmul_(along, unit_x, value=-1).div_(lengths), None, None


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, itself: bool) -> Tensor:
        distances = pairwise_distances(x, z)
        ctx.save_for_backward(x, z, distances)
        ctx.itself = itself
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        x, z, distances = ctx.saved_tensors
        # ∂d_ij/∂x_i = (x_i - z_j) / d_ij, and 0 where that divides by zero.
        weights = (slopes / distances).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return _pull(weights, x, z, ctx.itself), None, None


def _pull(weights: Tensor, x: Tensor, z: Tensor, itself: bool) -> Tensor:
    """Return Σ_j w_ij (x_i - z_j), and where z is the batch itself also what pulls its rows."""
    if itself:
        weights = _plus_transposed(weights)
    return torch.addmm(weights.sum(dim=1, keepdim=True) * x, weights, z, alpha=-1)


def _plus_transposed(matrix: Tensor) -> Tensor:
    """Return M + Mᵀ, through a copy of Mᵀ: a CPU takes twice as long to add it in place."""
    return matrix.T.contiguous().add_(matrix)


class _DistancesOfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, anchors: Tensor, others: Tensor, itself: bool, squared: bool
    ) -> Tensor:
        differences = z.index_select(0, others.view(-1)).view(*others.shape, x.shape[1])
        differences -= x.index_select(0, anchors)  # z - x, (K, T, D)
        values = torch.linalg.vector_norm(differences, dim=2)
        if squared:
            values.square_()
        ctx.save_for_backward(differences, values, anchors, others)
        ctx.n_embeds, ctx.itself, ctx.squared = len(x), itself, squared
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        differences, values, anchors, others = ctx.saved_tensors
        pulls = differences * _pair_weights(slopes, values, ctx.squared)[:, :, None]  # dL/dz
        gradient = pulls.new_zeros(ctx.n_embeds, pulls.shape[2])
        gradient.index_add_(0, anchors, pulls.sum(dim=0), alpha=-1)
        if ctx.itself:
            gradient.index_add_(0, others.view(-1), pulls.flatten(0, 1))
        return gradient, *[None] * 5


class _DistancesFromMatrix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, anchors: Tensor, others: Tensor, itself: bool, squared: bool
    ) -> Tensor:
        wide_x = x.double()
        wide_z = wide_x if itself else z.double()
        distances = pairwise_distances(wide_x, wide_z)  # (B, R)
        longest = torch.linalg.vector_norm(wide_x, dim=1).amax()
        distances.masked_fill_(distances < 1e-6 * longest, 0)
        places = (anchors * len(z) + others).view(-1)  # in the flattened matrix
        chosen = distances.view(-1).index_select(0, places).view(others.shape)
        values = (chosen.square_() if squared else chosen).to(x.dtype)
        ctx.save_for_backward(wide_x, wide_z, values, places)
        ctx.itself, ctx.squared = itself, squared
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, z, values, places = ctx.saved_tensors
        weights = x.new_zeros(len(x) * len(z))  # summed over the repetitions of a pair
        chosen = _pair_weights(slopes, values, ctx.squared).double()
        weights.index_add_(0, places, chosen.view(-1))
        gradient = _pull(weights.view(len(x), len(z)), x, z, ctx.itself)
        return gradient.to(values.dtype), *[None] * 5


def _pair_weights(slopes: Tensor, values: Tensor, squared: bool) -> Tensor:
    """Return w (K, T) such that a pair adds w (x_a - z_o) to dL/dx_a; 0 for a distance of 0."""
    if squared:
        return 2 * slopes
    return slopes / values.masked_fill(values == 0, torch.inf)


class _MaskedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        totals, softmax = _logsumexp_and_softmax(values, mask)
        ctx.save_for_backward(softmax, totals)
        return totals.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:
        softmax, totals = ctx.saved_tensors
        return softmax * (slopes[:, None] * nonempty(totals)), None


class _SoftHingeMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, violations: Tensor, mask: Tensor, scale: float) -> Tensor:
        totals, softmax = _logsumexp_and_softmax(violations * scale, mask)
        hinges = F.softplus(totals)  # log(1 + Σ exp) is the softplus of log Σ exp
        ctx.save_for_backward(softmax, totals.sigmoid_() / len(totals))
        return hinges.mean() / scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        softmax, slopes = ctx.saved_tensors
        return softmax * (upstream * slopes), None, None


def _logsumexp_and_softmax(exponents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return log Σ exp of each row's entries in the mask, (B, 1), and their softmax, (B, R)."""
    # A row's largest entry x has the softmax exp(x - log Σ exp) >= 1/R, whose logarithm loses no
    # digits. On a CPU softmax is also much faster than logsumexp where exponents underflow.
    exponents = torch.where(mask, exponents, torch.finfo(exponents.dtype).min)
    softmax = exponents.softmax(dim=1)
    peak = softmax.amax(dim=1, keepdim=True)
    return exponents.amax(dim=1, keepdim=True) - peak.log_(), softmax


class _SoftplusMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, violations: Tensor, mask: Tensor) -> Tensor:
        ctx.shape = violations.shape
        if violations.device.type == "cpu":  # exponentials cost more than finding the few places
            places = mask.view(-1).view(torch.uint8).nonzero().squeeze(1)
            chosen = violations.view(-1).index_select(0, places)
            count: Tensor | int = max(len(places), 1)
        else:  # which would wait for the device
            places = None
            chosen = violations.masked_fill(~mask, -torch.inf)
            count = mask.count_nonzero().clamp_(min=1)
        ctx.save_for_backward(chosen.sigmoid() / count, places)
        return F.softplus(chosen).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        slopes, places = ctx.saved_tensors
        slopes = upstream * slopes
        if places is not None:
            everywhere = slopes.new_zeros(ctx.shape.numel())
            slopes = everywhere.index_copy_(0, places, slopes).view(ctx.shape)
        return slopes, None


class _HingeMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, violations: Tensor) -> Tensor:
        slopes = (violations > 0).to(violations.dtype)
        slopes /= slopes.sum().clamp_(min=1)
        ctx.save_for_backward(slopes)
        return (slopes * violations).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (slopes,) = ctx.saved_tensors
        return upstream * slopes


class _MeanSquaredLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeds: Tensor) -> Tensor:
        ctx.save_for_backward(embeds)
        return embeds.square().mean() * embeds.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (embeds,) = ctx.saved_tensors
        return embeds * (upstream * 2 / len(embeds))
