"""The whole loss of a training step as one module, L = L_DML + w L_match + λ L_proxy of a batch.

L_match is from Roth et al., Integrating Language Guidance into Vision-based Deep Metric Learning,
CVPR 2022; ``language_proxies`` explains L_proxy.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from language.guide import LanguageGuide
from utilities.distributed import gather, mean, smallest
from utilities.gradient_cache import in_chunks
from utilities.structures import Batch

from .base import Criterion
from .language_distillation import LanguageDistillation
from .language_proxies import LanguageProxies


class Outcome(NamedTuple):
    """The result of an ``Objective``'s forward pass."""

    loss: Tensor  # scalar of the whole batch; its gradient is this process's part
    terms: dict[str, Tensor]  # its summands, detached: "loss_dml", "loss_match", "loss_proxy"
    embeds: Tensor  # (B, D), detached, of the first view, of all processes in order of rank
    rows: Tensor  # (B,) int64, of these


class Objective(nn.Module):
    """An embedder, a criterion and optional language guidance.

    If several processes hold a share of the batch each, the guidance and a criterion that does not
    gather by itself get the embeddings, labels and rows of all shares: every process computes the
    loss of the whole batch, and the gradients averaged over the processes are those of one process
    with that batch. Miners and memories see the same batch everywhere and reach the same state.

    All shares are cut to the size of the smallest if images of one could not be read. BatchNorm
    normalises over a share, unless frozen or converted by ``nn.SyncBatchNorm``.

    Args:
        embedder: images (B, 3, H, W) -> ``Embedding``.
        criterion: L_DML.
        guide: similarities of words; None: no guidance.
        distill: L_match; required with a guide.
        weight: w.
        proxies: L_proxy, if any.
        proxy_weight: λ.
        forward_bs: images per pass through the embedder (``utilities.gradient_cache``); 0: all.
    """

    def __init__(
        self,
        embedder: nn.Module,
        criterion: Criterion,
        guide: LanguageGuide | None = None,
        distill: LanguageDistillation | None = None,
        weight: float = 0.0,
        proxies: LanguageProxies | None = None,
        proxy_weight: float = 0.0,
        forward_bs: int = 0,
    ) -> None:
        super().__init__()
        if guide is not None and distill is None:
            raise ValueError("a guide needs a distillation")
        self.embedder = embedder
        self.criterion = criterion
        self.guide = guide
        self.distill = distill
        self.weight = weight
        self.proxies = proxies
        self.proxy_weight = proxy_weight
        self.forward_bs = forward_bs

    def forward(self, batch: Batch, guided: bool = True) -> Outcome:
        """Return the loss of the batch of which this is the process's share."""
        batch = _cut(batch, smallest(len(batch.labels)))
        labels, rows = gather(torch.stack([batch.labels, batch.rows], dim=1)).unbind(dim=1)
        whole = batch._replace(labels=labels, rows=rows)
        views = [in_chunks(self.embedder, self.forward_bs, view) for view in batch.views]
        if self.criterion.gathers:
            own = self.criterion.compute(views, batch)
            loss = own + (mean(own.detach()) - own.detach())  # that of all, by the own one's graph
            embeds = gather(views[0].embeds)
        else:
            views = [view._replace(embeds=gather(view.embeds)) for view in views]
            loss = self.criterion.compute(views, whole)
            embeds = views[0].embeds
        terms = {"loss_dml": loss.detach()}
        if guided and (self.weight or self.proxies is not None):
            read = embeds if self.criterion.reads == "embeds" else gather(views[0].features)
            if self.weight and self.guide is not None and self.distill is not None:
                match = self.distill(read, self.guide.similarity(whole), whole.labels)
                terms["loss_match"] = match.detach()
                loss = loss + self.weight * match
            if self.proxies is not None:
                proxy = self.proxies(read, whole.labels)
                terms["loss_proxy"] = proxy.detach()
                loss = loss + self.proxy_weight * proxy
        return Outcome(loss, terms, embeds.detach(), whole.rows)


def _cut(batch: Batch, n: int) -> Batch:
    """Return the first n images, with their labels, rows and captions."""
    views = tuple(view[:n] for view in batch.views)
    return Batch(views, batch.labels[:n], batch.rows[:n], batch.captions[:n])
