"""Proxy-NCA loss.

Movshovitz-Attias, Toshev, Leung, Ioffe and Singh, No Fuss Distance Metric Learning using Proxies,
ICCV 2017, eq. 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .class_vectors import ClassVectorCriterion, own_class


class ProxyNCA(ClassVectorCriterion):
    """Makes each image nearer to the proxy of its class than to all others.

        L = -1/B Σ_i log  exp(-d(x_i, p_{y_i})) / Σ_{c ≠ y_i} exp(-d(x_i, p_c))

    with squared Euclidean distances d of unit vectors. The own proxy is not in the denominator, so
    that the loss can be negative; with it the loss is ``ProxyNCAPlusPlus`` at temperature 1, and
    pytorch-metric-learning's ProxyNCALoss. The code of Roth et al., ICML 2020, multiplies unit
    embeddings and proxies by 3 and so d by 9, the inverse temperature of the ProxyNCA++ paper.

    Args:
        n_classes: C >= 2, number of training classes, one proxy each.
        embed_dim: D.
        lrmulti: learning rate of the proxies, in embedder's learning rates. The first proxies are
            normal with standard deviation 1/8, as in the code of Roth et al.

    Shapes: embeds (B, D) of any length, labels (B,) int64 in [0, C); returns a scalar, which can be
    negative.

    Raises:
        ValueError: fewer than two classes, or a label out of range (checked on CPU).
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
