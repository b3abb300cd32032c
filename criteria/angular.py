"""Angular loss: Wang et al., Deep Metric Learning with Angular Loss, ICCV 2017, section 3.3."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from utilities.structures import References

from .base import PairCriterion, positives_and_negatives, require_at_least
from .npair import n_pair
from .primitives import mean_squared_length, similarities, softplus_mean


class Angular(PairCriterion):
    """N-pair loss, and an upper bound on the angle at which a negative sees a positive pair.

        L = L_npair + w/T Σ_(a,p) log(1 + Σ_n exp(f_apn)) + l2 · 1/B Σ_i |x_i|²
        f_apn = 4 tan²α (x_a + x_p)·x_n - 2 (1 + tan²α) x_a·x_p

    over the T ordered pairs (a, p) of one class and all negatives n of a. f is that of the
    normalised embeddings; L_npair takes them as they are. So does the code of Roth et al., ICML
    2020, which clamps the exponents of L_npair to [-50, 50] and does not square the last length.

    Args:
        alpha: α, in degrees, in (0, 70]: the largest angle at the negative that costs little.
        npair_ang_weight: w >= 0.
        npair_l2: >= 0, weight of the embeddings' mean squared length; constant for unit rows.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0.
    """

    def __init__(
        self, *, alpha: float = 45.0, npair_ang_weight: float = 2.0, npair_l2: float = 0.005
    ) -> None:
        super().__init__()
        if not 0 < alpha <= 70:
            raise ValueError(
                f"alpha must be in (0, 70] degrees; got {alpha:g} (the paper: 36 to 55)"
            )
        require_at_least(0, npair_ang_weight=npair_ang_weight, npair_l2=npair_l2)
        self.tan2 = math.tan(math.radians(alpha)) ** 2
        self.npair_ang_weight = npair_ang_weight
        self.npair_l2 = npair_l2

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        sims = similarities(embeds, references)  # (B, R)
        positive, negative = positives_and_negatives(labels, references)
        others = None if references is None else references.embeds
        f = _LogSumOverNegatives.apply(sims, embeds, others, negative, self.tan2)  # (B, R)
        angular = softplus_mean(f, positive)
        npair = n_pair(sims, positive, negative)
        length = mean_squared_length(embeds)
        return npair + self.npair_ang_weight * angular + self.npair_l2 * length


class _LogSumOverNegatives(torch.autograd.Function):
    """log Σ_n exp(f_apn) of each a and p, (B, R), by a product of two matrices:

        Σ_n exp(f_apn) = exp(-2 (1 + tan²α) cos_ap) Σ_n exp(4 tan²α cos_an) exp(4 tan²α cos_pn)

    No factor leaves the range of float32 at α <= 70°. One product is enough for the derivative:
    within a batch a pair comes in both orders, so cos_pn weighs as much as cos_an. That holds for
    symmetric slopes, such as those over positive pairs. z is None for the batch itself.
    """

    @staticmethod
    def forward(
        ctx: Any, sims: Tensor, x: Tensor, z: Tensor | None, negative: Tensor, tan2: float
    ) -> Tensor:
        ctx.near, ctx.pull, ctx.itself = 4 * tan2, 2 * (1 + tan2), z is None
        lengths = _lengths(x)  # (B, 1)
        scale = (lengths * (lengths if z is None else _lengths(z)).T).reciprocal_()  # (B, R)
        cosines = sims * scale
        exps = other_exps = (ctx.near * cosines).exp_()
        if z is not None:
            units = F.normalize(z, dim=1)
            other_exps = (ctx.near * (units @ units.T)).exp_()  # (R, R)
        exps = exps * negative
        sums = exps @ other_exps  # (B, R), Σ_n of each a and p
        sums.clamp_(min=torch.finfo(sums.dtype).tiny)  # so that no negatives have a logarithm
        ctx.save_for_backward(sims, x, lengths, scale, exps, other_exps, sums)
        return sums.log().sub_(cosines, alpha=ctx.pull)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        sims, x, lengths, scale, exps, other_exps, sums = ctx.saved_tensors
        through_an = ((slopes / sums) @ other_exps).mul_(exps)
        through_an.mul_(2 * ctx.near if ctx.itself else ctx.near)
        weights = through_an.sub_(slopes, alpha=ctx.pull).mul_(scale)  # with respect to S
        # ∂cos_ij/∂x_i has a second part, -cos_ij x_i / |x_i|²
        radial = weights * sims
        radial_sums = radial.sum(dim=1)
        if ctx.itself:
            radial_sums += radial.sum(dim=0)
        along = -radial_sums[:, None] / lengths.square()
        return weights, along * x, None, None, None


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12)
