"""ProxyNCA++ loss.

Teh, DeVries and Taylor, ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component
Analysis, ECCV 2020, section 3.
"""

import torch.nn.functional as F
from torch import Tensor

from .class_vectors import ClassVectorCriterion


class ProxyNCAPlusPlus(ClassVectorCriterion):
    """Maximises the probability that each image is assigned to its class's proxy.

        L = -1/B Σ_i log  exp(-d(x_i, p_{y_i}) / T) / Σ_c exp(-d(x_i, p_c) / T)

    with squared Euclidean distances d of unit vectors. Unlike in ``ProxyNCA`` the own proxy is in
    the denominator, and there is a temperature. As d = 2 - 2 cos, it is ``Softmax`` at temperature
    T / 2, with other initial vectors and rates.

    Args:
        n_classes: C, number of training classes, one proxy each.
        embed_dim: D.
        lrmulti: learning rate of the proxies, in embedder's learning rates: the paper's fast moving
            proxies. The first ones are normal with standard deviation 1/8, as in the authors' code.
        temperature: T > 0, in squared distance; the paper has 1/9.

    Shapes: embeds (B, D) of any length, labels (B,) int64 in [0, C); returns a scalar >= 0.

    Raises:
        ValueError: a label out of range (checked on CPU).
    """

    def __init__(
        self, n_classes: int, embed_dim: int, *, lrmulti: float = 50.0, temperature: float = 0.11
    ) -> None:
        super().__init__(n_classes, embed_dim, std=1 / 8, lrmulti=lrmulti)
        self.temperature = temperature

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(2 / self.temperature * self.cosines(embeds, labels), labels)
