"""All that a training step computes, as one module: L = L_DML + w L_match of a batch.

Roth et al., Integrating Language Guidance into Vision-based Deep Metric Learning, CVPR 2022.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from language.guide import LanguageGuide
from utilities.distributed import gather, mean, smallest
from utilities.structures import Batch

from .base import Criterion
from .language_distillation import LanguageDistillation


class Outcome(NamedTuple):
    """What a forward pass of an ``Objective`` gives."""

    loss: Tensor  # scalar of the whole batch, whose gradient is this process's part
    terms: dict[str, Tensor]  # what it is made of, detached: "loss_dml", "loss_match"
    embeds: Tensor  # (B, D), detached, of the first view, of all processes in order of rank
    rows: Tensor  # (B,) int64, of these


class Objective(nn.Module):
    """An embedder, a criterion and, where asked, the guidance by words.

    One forward and one backward pass are a step, which is what DistributedDataParallel needs to
    average gradients. Where several processes hold a share of the batch each, a criterion that does
    not gather by itself is given the embeddings, labels and rows of all shares, and so is the
    guidance: every process computes the loss of the whole batch, and the gradients averaged over
    the processes are those of one process with that batch (``utilities.distributed``). Miners and
    memories see the same batch everywhere, and come to the same state.

    All shares are cut to the size of the smallest, where images of one could not be read: the step
    is that of one process with the images that are left. BatchNorm normalises over a share, unless
    it is frozen or converted by ``nn.SyncBatchNorm.convert_sync_batchnorm``.

    For a criterion that does not gather by itself, 4 D + 16 bytes an image are gathered and 4 D
    reduced on the way back: 231 and 229 kB for 112 images at D = 512, beside the 94 MB of a
    ResNet50's gradient. Features are gathered by the criteria and for the guidance that read them,
    a feature map never.

    Args:
        embedder: images (B, 3, H, W) -> ``Embedding``.
        criterion: L_DML.
        guide: similarities of words; None: no guidance.
        distill: L_match; there with a guide.
        weight: w.

    Raises:
        ValueError: a guide without ``distill``.
    """

    def __init__(
        self,
        embedder: nn.Module,
        criterion: Criterion,
        guide: LanguageGuide | None = None,
        distill: LanguageDistillation | None = None,
        weight: float = 0.0,
    ) -> None:
        super().__init__()
        if guide is not None and distill is None:
            raise ValueError("a guide needs a distillation, or nothing follows its words")
        self.embedder = embedder
        self.criterion = criterion
        self.guide = guide
        self.distill = distill
        self.weight = weight

    def forward(self, batch: Batch, guided: bool = True) -> Outcome:
        """The loss of a batch whose views are what the embedder takes.

        Args:
            batch: this process's share.
            guided: whether the guidance, if there is one, is in force yet.
        """
        batch = _cut(batch, smallest(len(batch.labels)))
        labels, rows = gather(torch.stack([batch.labels, batch.rows], dim=1)).unbind(dim=1)
        whole = batch._replace(labels=labels, rows=rows)
        views = [self.embedder(view) for view in batch.views]
        if self.criterion.gathers:
            own = self.criterion.compute(views, batch)
            loss = own + (mean(own.detach()) - own.detach())  # that of all, by the own one's graph
            embeds = gather(views[0].embeds)
        else:
            views = [view._replace(embeds=gather(view.embeds)) for view in views]
            loss = self.criterion.compute(views, whole)
            embeds = views[0].embeds
        terms = {"loss_dml": loss.detach()}
        if self.guide is not None and self.distill is not None and guided:
            read = embeds if self.criterion.reads == "embeds" else gather(views[0].features)
            match = self.distill(read, self.guide.similarity(whole), whole.labels)
            terms["loss_match"] = match.detach()
            loss = loss + self.weight * match
        return Outcome(loss, terms, embeds.detach(), whole.rows)


def _cut(batch: Batch, n: int) -> Batch:
    """Its first n images, with their labels, rows and captions."""
    if n == len(batch.labels):
        return batch
    views, captions = tuple(view[:n] for view in batch.views), batch.captions[:n]
    return batch._replace(
        views=views, labels=batch.labels[:n], rows=batch.rows[:n], captions=captions
    )
