"""Proxy Anchor loss: Kim, Kim, Cho and Kwak, Proxy Anchor Loss for Deep Metric Learning, CVPR 2020,
eq. 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import require_finite, require_positive
from .class_vectors import ClassVectorCriterion, own_class


class ProxyAnchor(ClassVectorCriterion):
    """Pulls each class's proxy toward the images of its class and pushes it away from the others.

        L = 1/|P⁺| Σ_{c ∈ P⁺} log(1 + Σ_{i: y_i = c} exp(-α⁺ (cos_ic - δ⁺)))
          + 1/C    Σ_c        log(1 + Σ_{i: y_i ≠ c} exp( α⁻ (cos_ic - δ⁻)))

    P⁺ holds the classes of the batch. The paper uses one α for both, and δ⁺ = -δ⁻ = δ.

    With mode "nca" the images are the anchors instead, as in the code of Roth et al., CVPR 2022:

        L = 1/B Σ_i  log(1 + exp(-α⁺ (cos_{i,y_i} - δ⁺)))
                   + log(1 + Σ_{c ≠ y_i} exp(α⁻ (cos_ic - δ⁻)))

    This is not ``ProxyNCA``. In their code a class with n images counts n times: in the mean over
    P⁺, and in mode "nca" in the sum of exponentials. Proxies start with standard deviation 1/8, as
    in their code.

    Args:
        mode: "anchor" or "nca".
        lrmulti: learning rate of the proxies, as a multiple of the embedder's.
        pos_alpha, neg_alpha: α⁺, α⁻ > 0, inverse temperatures.
        pos_delta, neg_delta: δ⁺, δ⁻, in cosine similarity.
    """

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        *,
        mode: str = "anchor",
        lrmulti: float = 2000.0,
        pos_alpha: float = 32.0,
        neg_alpha: float = 32.0,
        pos_delta: float = 0.1,
        neg_delta: float = -0.1,
    ) -> None:
        if mode not in ("anchor", "nca"):
            raise ValueError(f"mode must be anchor or nca; got {mode}")
        require_positive(pos_alpha=pos_alpha, neg_alpha=neg_alpha)
        require_finite(pos_delta=pos_delta, neg_delta=neg_delta)
        super().__init__(n_classes, embed_dim, std=1 / 8, lrmulti=lrmulti)
        self.mode = mode
        self.pos_alpha = pos_alpha
        self.neg_alpha = neg_alpha
        self.pos_delta = pos_delta
        self.neg_delta = neg_delta

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        cosines = self.cosines(embeds, labels)  # (B, C)
        pulls = -self.pos_alpha * (own_class(cosines, labels).squeeze(1) - self.pos_delta)  # (B,)
        pushes = self.neg_alpha * (cosines - self.neg_delta)
        # The lowest finite value, since -inf without any negatives has a NaN gradient.
        pushes = pushes.scatter(1, labels[:, None], torch.finfo(pushes.dtype).min)  # (B, C)

        # log(1 + Σ exp z) = softplus(logsumexp z)
        if self.mode == "nca":
            return (F.softplus(pulls) + F.softplus(pushes.logsumexp(dim=1))).mean()
        n_present = pulls.new_zeros(self.n_classes).index_fill(0, labels, 1).sum()  # |P⁺|
        pull = log_one_plus_sum_exp(pulls, labels, self.n_classes).sum() / n_present
        return pull + F.softplus(pushes.logsumexp(dim=0)).mean()


def log_one_plus_sum_exp(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Return log(1 + Σ exp(value)) of each group of values: (N,) to (n_groups,), 0 if empty."""
    # Subtracting each group's largest exponent avoids overflow; the 1 is exp(0), so it is >= 0.
    largest = values.new_zeros(n_groups).scatter_reduce(0, groups, values.detach(), "amax")
    sums = (-largest).exp().scatter_add(0, groups, (values - largest[groups]).exp())
    return largest + sums.log()
