"""CosFace: large margin cosine loss: Wang et al., CosFace: Large Margin Cosine Loss for Deep Face
Recognition, CVPR 2018, eq. 4.
"""

from torch import Tensor

from .base import require_at_least, require_positive
from .class_vectors import ClassVectorCriterion, margin_softmax, own_class


class CosFace(ClassVectorCriterion):
    """Classifies by cosine, with a margin subtracted from the cosine of an image and its class.

        L = -1/B Σ_i log  exp(s (cos_{i,y_i} - m))
                          / (exp(s (cos_{i,y_i} - m)) + Σ_{c ≠ y_i} exp(s cos_ic))

    Args:
        lr: learning rate of the class vectors, whatever the embedder's.
        margin: m >= 0, in cosine similarity.
        feature_scale: s > 0, an inverse temperature; the paper's 64 is for ten thousand classes.
    """

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        *,
        lr: float = 5e-4,
        margin: float = 0.35,
        feature_scale: float = 16.0,
    ) -> None:
        require_at_least(0, margin=margin)
        require_positive(feature_scale=feature_scale)
        super().__init__(n_classes, embed_dim, lr=lr)
        self.margin = margin
        self.feature_scale = feature_scale

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        cosines = self.cosines(embeds, labels)  # (B, C)
        own = own_class(cosines, labels) - self.margin
        return margin_softmax(cosines, labels, own, self.feature_scale)
