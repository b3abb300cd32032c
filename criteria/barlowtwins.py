"""Barlow Twins: Zbontar, Jing, Misra, LeCun and Deny, Barlow Twins: Self-Supervised Learning via
Redundancy Reduction, ICML 2021, eq. 1-2.
"""

import torch
from torch import Tensor

from utilities.distributed import gather

from .base import require_at_least
from .self_supervised import SelfSupervised, full_precision, head

EPS = 1e-5  # of the variance, as in the BatchNorm with which the authors standardise


class BarlowTwins(SelfSupervised):
    """Turns the correlations of the two views' projections over the batch into the identity.

        L = Σ_d (1 - C_dd)² + λ Σ_d Σ_{e ≠ d} C_de²,   C = 1/B Σ_i z1_i z2_iᵀ

    with z1 and z2 standardised over the batch of all processes.

    Args:
        redundancy_weight: λ.
        hidden_dim: width of the projector's two hidden layers.
        proj_dim: D of the projections; the paper gains up to 16384.

    Shapes: features (B, F) of each view; returns a scalar >= 0, D where all projections are equal.

    Raises:
        ValueError: one image on all processes together.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        redundancy_weight: float = 0.0051,
        hidden_dim: int = 8192,
        proj_dim: int = 8192,
    ) -> None:
        super().__init__(feature_dim)
        require_at_least(0, redundancy_weight=redundancy_weight)
        require_at_least(1, hidden_dim=hidden_dim, proj_dim=proj_dim)
        self.redundancy_weight = redundancy_weight
        self.projector = head(feature_dim, hidden_dim, hidden_dim, proj_dim)

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        views = gather(torch.stack([first, second], dim=1))  # (B, 2, D)
        n, _, dim = views.shape
        if n < 2:
            raise ValueError("BarlowTwins standardises over the batch; use 2 images or more, got 1")
        var, mean = torch.var_mean(views, dim=0, correction=0)  # (2, D)
        z1, z2 = ((views - mean) / (var + EPS).sqrt()).unbind(dim=1)  # (B, D)
        own = (z1 * z2).mean(dim=0)  # (D,): C_dd
        # B² Σ_de C_de² = ‖Z1ᵀ Z2‖² = Σ_ij (Z1 Z1ᵀ)_ij (Z2 Z2ᵀ)_ij, by the smaller matrices
        squares = (z1 @ z1.T) * (z2 @ z2.T) if n < dim else (z1.T @ z2).square()
        others = squares.sum() / n**2 - own.square().sum()
        return (1 - own).square().sum() + self.redundancy_weight * others
