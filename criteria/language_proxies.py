"""L_proxy: images are classified by class vectors that a linear map reads from words.

After Frome et al., DeViSE: A Deep Visual-Semantic Embedding Model, NeurIPS 2013, which maps images
to fixed word vectors by a hinge loss; here words are mapped to the images, by the softmax of Zhai
and Wu, Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019, beside an objective
that shapes the space: L = L_DML + λ L_proxy.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import at_least_float32, check_label_range, require_at_least, require_positive


class LanguageProxies(nn.Module):
    """Classifies each image by its cosine with one vector per class, which its words decide.

        L = -1/B Σ_i log  exp(a cos(x_i, p_{y_i})) / Σ_c exp(a cos(x_i, p_c)),     p_c = G t_c

    The text embeddings t_c are fixed, the map G is learned. Classes with similar words get similar
    vectors, also those never seen, so that words find their images.

    Args:
        n_classes: C, number of training classes.
        embed_dim: D.
        class_words: (C, D_text) unit rows t_c. None: every class has a free vector p_c of its own,
            the control that separates the effect of the words from that of the softmax. Words that
            are all equally similar amount to the same, since a linear map takes them anywhere.
        scale: a > 0, an inverse temperature.
        lr: learning rate of G, or of the free vectors, whatever the embedder's.

    Shapes: embeds (B, D) of any length, labels (B,) int64 in [0, C), checked on a CPU; returns a
    scalar >= 0 in float32, even inside autocast.
    """

    class_words: Tensor | None

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        class_words: Tensor | None = None,
        *,
        scale: float = 16.0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        require_positive(scale=scale)
        require_at_least(0, lr=lr)
        if class_words is not None and len(class_words) != n_classes:
            raise ValueError(f"{len(class_words)} class_words for {n_classes} classes")
        self.n_classes = n_classes
        self.scale = scale
        self.lr = lr
        # Made anew from the names at each start, so no checkpoint holds them.
        self.register_buffer("class_words", class_words, persistent=False)
        n_rows = n_classes if class_words is None else class_words.shape[1]
        bound = (embed_dim if class_words is None else n_rows) ** -0.5
        self.map = nn.Parameter(torch.empty(n_rows, embed_dim).uniform_(-bound, bound))  # G^T, or p

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        check_label_range(labels, self.n_classes)
        with torch.autocast(embeds.device.type, enabled=False):
            embeds = at_least_float32(embeds)
            p = self.map if self.class_words is None else self.class_words @ self.map  # (C, D)
            cosines = F.normalize(embeds, dim=1) @ F.normalize(p, dim=1).to(embeds.dtype).T
            return F.cross_entropy(self.scale * cosines, labels)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the group of G for an optimizer; class vectors have no weight decay."""
        return [{"params": [self.map], "lr": self.lr, "weight_decay": 0.0}]
