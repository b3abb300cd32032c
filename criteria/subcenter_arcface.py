"""Sub-center ArcFace.

Deng, Guo, Liu, Gong and Zafeiriou, Sub-center ArcFace: Boosting Face Recognition by Large-Scale
Noisy Web Faces, ECCV 2020, section 3.2.
"""

from torch import Tensor

from .arcface import add_angle, check_angle
from .class_vectors import ClassVectorCriterion, margin_softmax, own_class


class SubcenterArcFace(ClassVectorCriterion):
    """``ArcFace`` with several vectors per class, of which the nearest to the image counts.

        cos θ_ic = max_k cos(x_i, w_ck)

    in the equation of ``ArcFace``. Mislabelled and unusual images may gather around a sub-centre of
    their own. The paper's second stage, which drops the minor sub-centres and the images far from
    the dominant ones, is left out.

    Args:
        n_classes: C, number of training classes.
        embed_dim: D.
        lr: learning rate of the sub-centres, whatever the embedder's.
        angular_margin: m, in radians, in [0, π/2].
        feature_scale: s > 0, an inverse temperature.
        n_subcenters: K >= 1, vectors per class; 1 is ``ArcFace``.

    Shapes: embeds (B, D) of any length, labels (B,) int64 in [0, C); returns a scalar >= 0.

    Raises:
        ValueError: ``angular_margin`` or a label (checked on CPU) is out of range.
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
        super().__init__(n_classes, embed_dim, per_class=n_subcenters, lr=lr)
        self.angular_margin = angular_margin
        self.feature_scale = feature_scale

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        cosines = self.cosines(embeds, labels)
        if self.per_class > 1:
            cosines = cosines.max(dim=1).values  # (B, K, C) -> (B, C)
        own = add_angle(own_class(cosines, labels), self.angular_margin)
        return margin_softmax(cosines, labels, own, self.feature_scale)
