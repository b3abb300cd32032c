"""SimCLR: Chen, Kornblith, Norouzi and Hinton, A Simple Framework for Contrastive Learning of
Visual Representations, ICML 2020, eq. 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.distributed import gather, rank

from .base import require_at_least, require_positive
from .self_supervised import SelfSupervised, full_precision, head


class SimCLR(SelfSupervised):
    """Makes two views of an image find each other among both views of all images of the batch.

        L = mean over all views of l(i, j) = -log  exp(s_ij / τ) / Σ_{k ≠ i} exp(s_ik / τ)

    i and j are the views of one image, k runs over both views of all images of all processes, s is
    the cosine of the projections. Each process returns the mean over its own views. On language
    pairs (El Banani, Desai and Johnson, Learning Visual Representations via Language-Guided
    Sampling, CVPR 2023) the second view is another image, whose caption is like the first one's.

    Args:
        temperature: τ, > 0.
        hidden_dim: width of the projector, with BatchNorm and ReLU between its layers.
        layers: linear layers of the projector, >= 1: 3 as published with language pairs, 2 in the
            paper of SimCLR.
        proj_dim: dimension of the projections.

    Shapes: features (B, F) of each view; returns a scalar in [0, log(2B - 1) + 2/τ].
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        temperature: float = 0.1,
        hidden_dim: int = 2048,
        layers: int = 3,
        proj_dim: int = 128,
    ) -> None:
        super().__init__(feature_dim)
        require_positive(temperature=temperature)
        require_at_least(1, hidden_dim=hidden_dim, layers=layers, proj_dim=proj_dim)
        self.temperature = temperature
        self.projector = head(feature_dim, *[hidden_dim] * (layers - 1), proj_dim)

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        pairs = F.normalize(torch.stack([first, second], dim=1), dim=2)  # (B, 2, D)
        views = pairs.flatten(0, 1)  # (2B, D): rows 2i and 2i + 1 are the views of image i
        own = torch.arange(len(views), device=views.device) + rank() * len(views)
        logits = views / self.temperature @ gather(views).T  # (2B, 2B · processes)
        logits.scatter_(1, own[:, None], -torch.inf)  # k ≠ i, without a mask of that size
        return F.cross_entropy(logits, own ^ 1)  # the other of 2i and 2i + 1
