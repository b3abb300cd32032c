"""Normalised softmax loss: Zhai and Wu, Classification is a Strong Baseline for Deep Metric
Learning, BMVC 2019, section 3.
"""

import torch.nn.functional as F
from torch import Tensor

from .base import require_positive
from .class_vectors import ClassVectorCriterion


class Softmax(ClassVectorCriterion):
    """Classifies each image by its cosine with one vector per class, without a bias.

        L = -1/B Σ_i log  exp(cos_{i,y_i} / T) / Σ_c exp(cos_ic / T)

    Args:
        lr: learning rate of the class vectors, whatever the embedder's.
        temperature: T > 0, in cosine similarity.
    """

    def __init__(
        self, n_classes: int, embed_dim: int, *, lr: float = 1e-5, temperature: float = 0.05
    ) -> None:
        require_positive(temperature=temperature)
        super().__init__(n_classes, embed_dim, lr=lr)
        self.temperature = temperature

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.cosines(embeds, labels) / self.temperature, labels)
