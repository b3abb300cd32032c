"""VICReg: Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization for
Self-Supervised Learning, ICLR 2022, eq. 1-6.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.distributed import gather

from .base import require_at_least
from .self_supervised import SelfSupervised, full_precision, head

EPS = 1e-4  # of the variance, so that its root has a gradient at zero


class VICReg(SelfSupervised):
    """Makes views agree, dimensions keep a deviation of 1, and no two dimensions vary together.

        L = λ s(Z1, Z2) + μ/2 (v(Z1) + v(Z2)) + ν (c(Z1) + c(Z2))
        s(Z1, Z2) = 1/BD Σ_i ‖z1_i - z2_i‖²
        v(Z) = 1/D Σ_d [1 - sqrt(Var_d + 1e-4)]_+
        c(Z) = 1/D Σ_d Σ_{e ≠ d} Cov_de²

    over the batch of all processes, with variance and covariance divided by B - 1. s is averaged
    over dimensions and v over the views, as in the authors' code, whose weights these are; eq. 5
    sums s over dimensions, and eq. 6 sums v over the views.

    Args:
        invariance_weight, variance_weight, covariance_weight: λ, μ, ν.
        hidden_dim: width of the two hidden layers of the projector, the paper's expander.
        proj_dim: D of the projections.

    Shapes: features (B, F) of each view; returns a scalar >= 0.

    Raises:
        ValueError: one image on all processes together.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        hidden_dim: int = 8192,
        proj_dim: int = 8192,
    ) -> None:
        super().__init__(feature_dim)
        require_at_least(
            0,
            invariance_weight=invariance_weight,
            variance_weight=variance_weight,
            covariance_weight=covariance_weight,
        )
        require_at_least(1, hidden_dim=hidden_dim, proj_dim=proj_dim)
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight
        self.projector = head(feature_dim, hidden_dim, hidden_dim, proj_dim)

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        views = gather(torch.stack([first, second], dim=1))  # (B, 2, D)
        n, _, dim = views.shape
        if n < 2:
            raise ValueError("VICReg takes a variance over the batch; use 2 images or more, got 1")
        s = F.mse_loss(views[:, 0], views[:, 1])
        var, mean = torch.var_mean(views, dim=0, correction=1)  # (2, D)
        v = (1 - (var + EPS).sqrt()).relu().mean()
        squares = -var.square().sum()
        for z in (views - mean).unbind(dim=1):  # (B, D); ZZᵀ and ZᵀZ have the same sum of squares
            gram = (z @ z.T if n < dim else z.T @ z) / (n - 1)
            squares = squares + gram.square().sum()
        c = squares / dim
        return self.invariance_weight * s + self.variance_weight * v + self.covariance_weight * c
