"""Angular loss.

Wang et al., Deep Metric Learning with Angular Loss, ICCV 2017, section 3.3.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.pairs import pair_masks
from utilities.structures import References

from .base import PairCriterion
from .gradient import with_gradient
from .npair import n_pair
from .pair_weighting import mean_squared_length


class Angular(PairCriterion):
    """N-pair loss, and an upper bound on the angle at which a negative sees a positive pair.

        L = L_npair + w/T Σ_(a,p) log(1 + Σ_n exp(f_apn)) + l2 · 1/B Σ_i |x_i|²
        f_apn = 4 tan²α (x_a + x_p)·x_n - 2 (1 + tan²α) x_a·x_p

    over the T ordered pairs (a, p) of one class and all negatives n of a. f holds on the unit
    sphere, so it is that of the normalised embeddings; L_npair takes them as they are. So does the
    code of Roth et al., ICML 2020, which further clamps the exponents of L_npair to [-50, 50] and
    has the length in the last term itself, not squared.

    Args:
        alpha: α, in degrees, in (0, 70]: the largest angle at the negative that costs little.
        npair_ang_weight: w >= 0.
        npair_l2: >= 0, weight of the embeddings' mean squared length. For unit rows that is a
            constant, which is added all the same.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0.

    Raises:
        ValueError: ``alpha``, ``npair_ang_weight`` or ``npair_l2`` is out of range.
    """

    def __init__(
        self, *, alpha: float = 45.0, npair_ang_weight: float = 2.0, npair_l2: float = 0.005
    ) -> None:
        super().__init__()
        if not 0 < alpha <= 70:
            raise ValueError(
                f"--loss_angular_alpha {alpha} is no angle in degrees in (0, 70]; the paper uses "
                "36 to 55"
            )
        for name, weight in (("npair_ang_weight", npair_ang_weight), ("npair_l2", npair_l2)):
            if weight < 0:
                raise ValueError(
                    f"--loss_angular_{name} {weight} is a negative weight; use 0 or a positive one"
                )
        self.tan2 = math.tan(math.radians(alpha)) ** 2
        self.npair_ang_weight = npair_ang_weight
        self.npair_l2 = npair_l2

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        others, other_labels = references or (embeds, None)
        with torch.no_grad():
            positive, negative = pair_masks(labels, other_labels)
            sims = embeds @ others.T  # (B, R)
            npair, weights = n_pair(sims, positive, negative)

            # The angular term, of x / |x|: cos_ij = S_ij / (|x_i| |x_j|).
            lengths = row_lengths(embeds)  # (B, 1)
            if references is None:
                scale = (lengths * lengths.T).reciprocal_()  # (B, B)
                angular, slopes = self.angular(sims * scale, None, positive, negative)
            else:
                scale = (lengths * row_lengths(others).T).reciprocal_()  # (B, R)
                units = F.normalize(others, dim=1)
                angular, slopes = self.angular(sims * scale, units @ units.T, positive, negative)
            loss = npair + self.npair_ang_weight * angular
            loss = loss + self.npair_l2 * mean_squared_length(embeds)

            slopes.mul_(scale)  # of the angular term with respect to S
            weights.add_(slopes, alpha=self.npair_ang_weight)
            radial = slopes.mul_(sims)
            # ∂cos_ij/∂x_i has a second part, -cos_ij x_i / |x_i|², which keeps x_i on its sphere.
            radial_sums = radial.sum(dim=1)
            if references is None:  # S_ij moves both of its images
                weights = weights + weights.T
                radial_sums = radial_sums + radial.sum(dim=0)
            along = -self.npair_ang_weight * radial_sums[:, None] / lengths.square()
            along = along + 2 * self.npair_l2 / len(embeds)  # (B, 1)
            gradient = weights @ others + along * embeds
        return with_gradient(loss, embeds, gradient)

    def angular(
        self, cosines: Tensor, other_cosines: Tensor | None, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """1/T Σ_(a,p) log(1 + Σ_n exp(f_apn)) and its derivative with respect to the cosines.

        f is a sum of terms of (a, n), (p, n) and (a, p). Its exponential is their product, and the
        sum over n a product of two matrices, so that no (B, B, B) is ever there:

            Σ_n exp(f_apn) = exp(-2 (1 + tan²α) cos_ap) Σ_n exp(4 tan²α cos_an) exp(4 tan²α cos_pn)

        No factor leaves the range of float32 at α <= 70°.

        Args:
            cosines: (B, R), of the images with the references.
            other_cosines: (R, R), of the references with one another, constant; None where these
                are the batch itself.
            positive, negative: (B, R) bool.
        """
        near, pull = 4 * self.tan2, 2 * (1 + self.tan2)
        exps = (near * cosines).exp_()
        other_exps = exps if other_cosines is None else (near * other_cosines).exp_()  # (R, R)
        exps = exps * negative
        sums = exps @ other_exps  # (B, R), Σ_n of each a and p
        sums.clamp_(min=torch.finfo(sums.dtype).tiny)  # so that no negatives have a logarithm
        scores = sums.log().sub_(cosines, alpha=pull).masked_fill_(~positive, -torch.inf)

        n_pairs = positive.count_nonzero().clamp_(min=1)
        loss = F.softplus(scores).sum() / n_pairs
        slopes = scores.sigmoid_().div_(n_pairs)  # (B, R), dL / d scores
        through_an = ((slopes / sums) @ other_exps).mul_(exps)
        # Within a batch a pair comes in both orders, and so cos_pn weighs as much as cos_an.
        through_an.mul_(near if other_cosines is not None else 2 * near)
        return loss, through_an.sub_(slopes, alpha=pull)


def row_lengths(rows: Tensor) -> Tensor:
    """Euclidean lengths (N, 1) of the rows of (N, D), at least the 1e-12 of ``F.normalize``."""
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12)
