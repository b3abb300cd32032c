"""Proxy-NCA loss: Movshovitz-Attias, Toshev, Leung, Ioffe and Singh, No Fuss Distance Metric
Learning using Proxies, ICCV 2017, eq. 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import require_positive
from .class_vectors import ClassVectorCriterion, own_class


class ProxyNCA(ClassVectorCriterion):
    """Makes each image nearer to the proxy of its class than to all others.

        L = -1/B Σ_i log  exp(-d(x_i, p_{y_i})) / Σ_{c ≠ y_i} exp(-d(x_i, p_c))

    with squared Euclidean distances d of unit vectors. The own proxy is not in the denominator, so
    the loss can be negative; with it the loss is ``ProxyNCAPlusPlus`` at temperature 1, and
    pytorch-metric-learning's ProxyNCALoss. The code of Roth et al., ICML 2020, multiplies unit
    embeddings and proxies by 3 and so d by 9. Proxies start with standard deviation 1/8, as there.

    Args:
        n_classes: C >= 2.
        lrmulti: learning rate of the proxies, as a multiple of the embedder's.
    """

    def __init__(self, n_classes: int, embed_dim: int, *, lrmulti: float = 50.0) -> None:
        if n_classes < 2:
            raise ValueError(
                f"ProxyNCA needs at least 2 training classes, got {n_classes}; ProxyNCA++ "
                "(proxynca_pp) works with one"
            )
        super().__init__(n_classes, embed_dim, std=1 / 8, lrmulti=lrmulti)

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        logits = 2 * self.cosines(embeds, labels)  # (B, C); d = 2 - 2 cos, and the 2 cancels
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return (others.logsumexp(dim=1) - own_class(logits, labels).squeeze(1)).mean()


class ProxyNCAPlusPlus(ClassVectorCriterion):
    """Maximises the probability that each image is assigned to its class's proxy.

    Source: Teh, DeVries and Taylor, ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood
    Component Analysis, ECCV 2020, section 3.

        L = -1/B Σ_i log  exp(-d(x_i, p_{y_i}) / T) / Σ_c exp(-d(x_i, p_c) / T)

    with squared Euclidean distances d of unit vectors. As d = 2 - 2 cos, it is ``Softmax`` at
    temperature T / 2, with other initial vectors and rates.

    Args:
        lrmulti: as of ``ProxyNCA``: the paper's fast moving proxies.
        temperature: T > 0, in squared distance; the paper has 1/9.
    """

    def __init__(
        self, n_classes: int, embed_dim: int, *, lrmulti: float = 50.0, temperature: float = 0.11
    ) -> None:
        require_positive(temperature=temperature)
        super().__init__(n_classes, embed_dim, std=1 / 8, lrmulti=lrmulti)
        self.temperature = temperature

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(2 / self.temperature * self.cosines(embeds, labels), labels)
