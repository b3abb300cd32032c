"""BYOL: Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning,
NeurIPS 2020, eq. 1-2 and section 3.2.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utilities.gradient_cache import in_chunks
from utilities.structures import Batch, Embedding

from .base import Counting, at_least_float32, require_at_least
from .self_supervised import SelfSupervised, head, mean_cosine


class BYOL(Counting, SelfSupervised):
    """Makes each view predict how a slowly moving copy of the embedder projects the other.

        L = (2 - 2 cos(p1, z'2)) + (2 - 2 cos(p2, z'1)),   p = h(g(f(x))), z' = g'(f'(x))

    f is the embedder, g the projector, h the predictor. The target f', g' is not trained: after
    optimizer step k, its parameters become m·target + (1 - m)·online with

        m = 1 - (1 - momentum) (cos(π k / n_steps) + 1) / 2,   k = 0, 1, …

    Its BatchNorm normalises by the batch and keeps statistics of its own, unless the embedder's is
    frozen. The target is part of the state dict; the embedder is not.

    Args:
        embedder: f, copied here.
        n_steps: optimizer steps of the run, at the end of which m is 1.
        forward_bs: images per pass through f'; 0: all.
        momentum: m of the first step, in [0, 1].
        hidden_dim: width of projector and predictor.
        proj_dim: dimension of z' and p.

    Shapes: two views' features (B, F) and images (B, 3, H, W); returns a scalar in [0, 8].
    """

    counters = ("steps",)

    def __init__(
        self,
        feature_dim: int,
        embedder: nn.Module,
        n_steps: int,
        forward_bs: int = 0,
        *,
        momentum: float = 0.996,
        hidden_dim: int = 4096,
        proj_dim: int = 256,
    ) -> None:
        super().__init__(feature_dim)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]; got {momentum:g}")
        require_at_least(1, hidden_dim=hidden_dim, proj_dim=proj_dim)
        self.n_steps = n_steps
        self.forward_bs = forward_bs
        self.momentum = momentum
        self.steps = 0
        self.projector = head(feature_dim, hidden_dim, proj_dim)
        self.predictor = head(proj_dim, hidden_dim, proj_dim)
        self.target_embedder = copy.deepcopy(embedder).train().requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        self.check(views, batch)
        p1, p2 = (self.predictor(self.projector(at_least_float32(v.features))) for v in views)
        with torch.no_grad():
            targets = (
                in_chunks(self.target_embedder, self.forward_bs, view) for view in batch.views
            )
            z1, z2 = (self.target_projector(at_least_float32(t.features)) for t in targets)
        return 4 - 2 * mean_cosine(p1, z2) - 2 * mean_cosine(p2, z1)

    @torch.no_grad()
    def after_step(self, embedder: nn.Module) -> None:
        done = min(self.steps / max(self.n_steps, 1), 1)
        rest = (1 - self.momentum) * (math.cos(math.pi * done) + 1) / 2  # 1 - m
        followed = ((self.target_embedder, embedder), (self.target_projector, self.projector))
        for target, online in followed:
            for own, new in zip(target.parameters(), online.parameters(), strict=True):
                own.lerp_(new, rest)
        self.steps += 1
