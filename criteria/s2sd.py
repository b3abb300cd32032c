"""Simultaneous similarity-based self-distillation, S2SD: Roth, Milbich, Ommer, Cohen and Ghassemi,
Simultaneous Similarity-based Self-Distillation for Deep Metric Learning, ICML 2021, section 3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utilities.distributed import gather
from utilities.structures import Batch, Embedding

from .base import Counting, Criterion, at_least_float32, require_at_least, require_positive


class S2SD(Counting, Criterion):
    """Trains wider embeddings of the same features as well, and distils from them.

        L = 1/2 (L_source(e) + 1/m Σ_i L_target(g_i)) + w/m Σ_i D(e, g_i) + feat_w D(e, φ)
        D(e, t) = T²/B Σ_a KL( σ(S_t[a]/T) ‖ σ(S_e[a]/T) )

    e are the embeddings; g_i the targets, made of the pooled features φ by a head Linear - ReLU -
    Linear and normalised; S_t and S_e the (B, B) cosines, with the softmax σ over a row. D has a
    gradient only for e; L_target trains the heads and the features below them. The heads take no
    weight decay, as in the released code, and are not used at test time.

    w = 0 is the default and that of the commands of Roth et al., CVPR 2022. The paper's commands
    have w = 50, target dimensions 512 1024 1536 2048, ``pool_aggr`` and ``feat_distill``. Unlike in
    its code, a child keeps its own learning rates, only training iterations are counted, and
    L_source gets the embeddings as they are, normalised or not.

    Args:
        make: builds the loss of a name for embeddings of a dimension, a new one at each call.
        map_dim: M, of the feature map; None if it is F.
        source, target: names of L_source and L_target; each target has its own class vectors.
        T: temperature of the distillation, > 0, in cosine.
        w: weight of the distillation from the targets.
        pool_aggr: φ is the sum of the feature map's average and maximum, instead of the features.
        target_dims: dimension of each target.
        feat_distill: also distil from the features, by the last term.
        feat_w: its weight.
        feat_distill_delay: training iterations before it.

    Shapes: embeds (B, D), features (B, F), feature_map (B, M, h, w), labels (B,) int64; returns a
    scalar. With several processes B is the share of one, and each has the loss of all shares.

    Raises:
        ValueError: ``source`` or ``target`` is S2SD again or reads more than embeddings and labels,
            there is no target, or the temperature is not positive.
    """

    gathers = True
    counters = ("iterations",)

    def __init__(
        self,
        embed_dim: int,
        feature_dim: int,
        make: Callable[[str, int], Criterion],
        map_dim: int | None = None,
        *,
        source: str = "multisimilarity",
        target: str = "multisimilarity",
        T: float = 1.0,  # noqa: N803
        w: float = 0.0,
        pool_aggr: bool = False,
        target_dims: Sequence[int] = (1024, 1536, 2048),
        feat_distill: bool = False,
        feat_w: float = 50.0,
        feat_distill_delay: int = 1000,
    ) -> None:
        super().__init__()
        require_positive(T=T)
        require_at_least(0, w=w, feat_w=feat_w, feat_distill_delay=feat_distill_delay)
        if not target_dims or min(target_dims) < 1:
            dims = " ".join(map(str, target_dims))
            raise ValueError(f"target_dims must be one or more dimensions >= 1; got {dims}")
        self.T = T
        self.w = w
        self.pool_aggr = pool_aggr
        self.feat_distill = feat_distill
        self.feat_w = feat_w
        self.feat_distill_delay = feat_distill_delay
        self.iterations = 0
        self.source = _child(make, "source", source, embed_dim)
        self.targets = nn.ModuleList(_child(make, "target", target, dim) for dim in target_dims)
        width = map_dim if pool_aggr and map_dim is not None else feature_dim
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim))
            for dim in target_dims
        )

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        self.check(views, batch)
        embeds, features, feature_map = views[0]
        with torch.autocast(embeds.device.type, enabled=False):
            if self.pool_aggr:
                feature_map = at_least_float32(feature_map)
                features = feature_map.mean(dim=(2, 3)) + feature_map.amax(dim=(2, 3))
            embeds, features = gather(at_least_float32(embeds)), gather(at_least_float32(features))
            loss = self._loss(embeds, features, gather(batch.labels))
        if self.training:
            self.iterations += 1
        return loss

    def _loss(self, embeds: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        targets = [F.normalize(head(features), dim=1) for head in self.heads]  # (B, t) each
        losses = [criterion(x, labels) for criterion, x in zip(self.targets, targets, strict=True)]
        loss = (self.source(embeds, labels) + sum(losses) / len(losses)) / 2
        teachers = [(self.w / len(targets), target) for target in targets] if self.w else []
        if self.feat_distill and self.iterations >= self.feat_distill_delay:
            teachers.append((self.feat_w, features))
        if teachers:
            log_q = self._log_softmax(embeds)
            for weight, teacher in teachers:
                log_p = self._log_softmax(teacher.detach())
                kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
                loss = loss + weight * self.T**2 * kl
        return loss

    def _log_softmax(self, embeds: Tensor) -> Tensor:
        unit = F.normalize(embeds, dim=1)
        return (unit @ unit.T / self.T).log_softmax(dim=1)  # (B, B), log σ(S[a]/T) of each row

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        heads = {"params": list(self.heads.parameters()), "lr": lr, "weight_decay": 0.0}
        groups: list[dict[str, Any]] = [heads]
        for child in (self.source, *self.targets):
            groups += child.param_groups(lr)
        return groups


def _child(make: Callable[[str, int], Criterion], role: str, name: str, dim: int) -> Criterion:
    """Build the loss called ``name``, which must read nothing but embeddings and labels."""
    if name != "s2sd":  # which would build itself without end
        child = make(name, dim)
        if type(child).compute is Criterion.compute:
            return child
    raise ValueError(
        f"{role} must be a loss that reads only embeddings and labels, such as multisimilarity; "
        f"got {name}"
    )
