"""ArcFace: additive angular margin: Deng, Guo, Xue and Zafeiriou, ArcFace: Additive Angular Margin
Loss for Deep Face Recognition, CVPR 2019, eq. 3.
"""

import math

import torch
from torch import Tensor

from .base import require_at_least, require_positive
from .class_vectors import ClassVectorCriterion, margin_softmax, own_class


class ArcFace(ClassVectorCriterion):
    """Classifies by cosine, with a margin added to the angle between an image and its class.

        L = -1/B Σ_i log  exp(s φ(θ_{i,y_i})) / (exp(s φ(θ_{i,y_i})) + Σ_{c ≠ y_i} exp(s cos θ_ic))

        φ(θ) = cos(θ + m)          where θ <= π - m,
               cos θ - m sin m     beyond,

    where the second line, from the authors' code, keeps φ falling. The code of Roth et al., CVPR
    2022, clamps the cosine to [0, 1]: images more than 90° from their class get no gradient.

    Args:
        lr: learning rate of the class vectors, whatever the embedder's.
        angular_margin: m, in radians, in [0, π/2].
        feature_scale: s > 0, an inverse temperature.
    """

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        *,
        lr: float = 5e-4,
        angular_margin: float = 0.5,
        feature_scale: float = 16.0,
    ) -> None:
        check_angle(angular_margin)
        require_positive(feature_scale=feature_scale)
        super().__init__(n_classes, embed_dim, lr=lr)
        self.angular_margin = angular_margin
        self.feature_scale = feature_scale

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        cosines = self.cosines(embeds, labels)  # (B, C)
        own = add_angle(own_class(cosines, labels), self.angular_margin)
        return margin_softmax(cosines, labels, own, self.feature_scale)


class SubcenterArcFace(ClassVectorCriterion):
    """``ArcFace`` with several vectors per class, of which the nearest to the image counts.

    Source: Deng, Guo, Liu, Gong and Zafeiriou, Sub-center ArcFace: Boosting Face Recognition by
    Large-Scale Noisy Web Faces, ECCV 2020, section 3.2.

        cos θ_ic = max_k cos(x_i, w_ck)

    in the equation of ``ArcFace``. The paper's second stage, which drops minor sub-centres and the
    images far from the dominant ones, is left out.

    Args:
        lr, angular_margin, feature_scale: as of ``ArcFace``.
        n_subcenters: K >= 1, vectors per class; 1 is ``ArcFace``.
    """

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        *,
        lr: float = 5e-4,
        angular_margin: float = 0.5,
        feature_scale: float = 16.0,
        n_subcenters: int = 3,
    ) -> None:
        check_angle(angular_margin)
        require_positive(feature_scale=feature_scale)
        require_at_least(1, n_subcenters=n_subcenters)
        super().__init__(n_classes, embed_dim, per_class=n_subcenters, lr=lr)
        self.angular_margin = angular_margin
        self.feature_scale = feature_scale

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        cosines = self.cosines(embeds, labels)
        if self.per_class > 1:
            cosines = cosines.max(dim=1).values  # (B, K, C) -> (B, C)
        own = add_angle(own_class(cosines, labels), self.angular_margin)
        return margin_softmax(cosines, labels, own, self.feature_scale)


def add_angle(cosines: Tensor, margin: float) -> Tensor:
    """Return φ of ``ArcFace`` from cos θ, finite with its gradient in all of [-1, 1].

    The gradient of sin θ = √(1 - cos² θ) is infinite at θ = 0 and π; near these it counts as 0.
    """
    sines = (1 - cosines.square()).clamp(min=torch.finfo(cosines.dtype).eps).sqrt()
    return torch.where(
        cosines >= -math.cos(margin),  # θ <= π - m
        cosines * math.cos(margin) - sines * math.sin(margin),
        cosines - margin * math.sin(margin),
    )


def check_angle(angular_margin: float) -> None:
    """Raise ValueError unless the margin is in [0, π/2]."""
    if not 0 <= angular_margin <= math.pi / 2:
        raise ValueError(
            f"angular_margin must be in [0, π/2] radians, such as 0.5; got {angular_margin:g}"
        )
