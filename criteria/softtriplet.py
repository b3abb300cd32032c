"""SoftTriple loss: Qian, Shang, Sun, Hu, Li and Jin, SoftTriple Loss: Deep Metric Learning Without
Triplet Sampling, ICCV 2019, section 3: eq. 8 and the regulariser on the number of centres.
"""

import torch
from torch import Tensor

from .base import require_at_least, require_finite, require_positive
from .class_vectors import ClassVectorCriterion, margin_softmax, own_class


class SoftTriplet(ClassVectorCriterion):
    """Classifies by similarity to classes of several centres each, pulled together where redundant.

        L = -1/B Σ_i log  exp(λ (S_{i,y_i} - δ))
                          / (exp(λ (S_{i,y_i} - δ)) + Σ_{c ≠ y_i} exp(λ S_ic))
            + τ / (C K (K - 1)) Σ_c Σ_{k < l} ||w_ck - w_cl||

        S_ic = Σ_k  softmax_k(x_i · w_ck / γ)  x_i · w_ck

    with unit x and w. γ divides, as in the authors' code; the code of Roth et al., ICML 2020,
    multiplies by γ, takes that softmax over the classes and normalises across the centres. Its
    λ = 8 and K = 2 are the defaults here, the paper's are 20 and 10.

    Args:
        n_centroids: K >= 1, centres per class; 1 has no regulariser.
        margin_delta: δ, in similarity.
        gamma: γ > 0, temperature of the softmax over a class's centres.
        lambda_: λ > 0, an inverse temperature.
        reg_weight: τ >= 0, weight of the distances between a class's centres.
        lrmulti: learning rate of the centres, as a multiple of the embedder's.
    """

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        *,
        n_centroids: int = 2,
        margin_delta: float = 0.01,
        gamma: float = 0.1,
        lambda_: float = 8.0,
        reg_weight: float = 0.2,
        lrmulti: float = 1.0,
    ) -> None:
        require_at_least(1, n_centroids=n_centroids)
        require_at_least(0, reg_weight=reg_weight)
        require_positive(gamma=gamma, lambda_=lambda_)
        require_finite(margin_delta=margin_delta)
        super().__init__(n_classes, embed_dim, per_class=n_centroids, lrmulti=lrmulti)
        self.margin_delta = margin_delta
        self.gamma = gamma
        self.lambda_ = lambda_
        self.reg_weight = reg_weight

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        centres = self.unit_vectors(embeds.dtype)  # (K * C, D)
        sims = self.cosines(embeds, labels, centres)
        if self.per_class > 1:
            sims = (sims * (sims / self.gamma).softmax(dim=1)).sum(dim=1)  # (B, K, C) -> (B, C)
        own = own_class(sims, labels) - self.margin_delta
        loss = margin_softmax(sims, labels, own, self.lambda_)
        if self.reg_weight and self.per_class > 1:
            loss = loss + self.reg_weight * mean_spread(centres.unflatten(0, (self.per_class, -1)))
        return loss


def mean_spread(centres: Tensor) -> Tensor:
    """Return half the mean distance between two centres of a class, in [0, 1], from (K, C, D)."""
    k, n_classes, _ = centres.shape
    by_class = centres.transpose(0, 1)  # (C, K, D)
    squares = 2 - 2 * (by_class @ by_class.mT)  # (C, K, K)
    # The distance is held constant where two centres meet, as its gradient has no limit there.
    distances = squares.clamp(min=torch.finfo(squares.dtype).eps).sqrt()
    return distances.triu(1).sum() / (n_classes * k * (k - 1))
