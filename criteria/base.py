"""The contract of every objective."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from utilities.structures import Batch, Embedding, References


class Criterion(nn.Module):
    """An objective over the embeddings of a batch, with its own parameters where it has some.

    A loss on one set of embeddings and their labels writes ``forward`` and nothing else:
    ``compute`` checks the shapes and hands over float32 outside autocast, since exponentials of
    scaled similarities overflow half precision. An objective that reads more of the batch (several
    views, the pooled features, captions) sets ``n_views`` and overrides ``compute``; one whose
    parameters learn at other rates than the embedder's overrides ``param_groups``.

    Collaborators (miner, n_classes, embed_dim) are positional-or-keyword constructor parameters,
    hyperparameters are keyword-only.

    Attributes:
        n_views: views of each tuple of images that ``compute`` needs.
        reads: what of an ``Embedding`` the objective is about: "embeds", or "features" where it has
            a head of its own, so that the embedding layer is left out.
        gathers: where several processes train together, ``compute`` is given this process's share
            of the batch and gathers what it compares (``utilities.distributed``). Otherwise it is
            given the embeddings, labels and rows of all shares, and may read these only.
    """

    n_views: ClassVar[int] = 1
    reads: ClassVar[str] = "embeds"
    gathers: ClassVar[bool] = False

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        """The loss: embeds (B, D), labels (B,) int64; returns a differentiable scalar.

        A batch without any active pair gives a finite zero that still has a gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} is called through compute(views, batch)")

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        """The loss of a batch, as the training loop calls it.

        Args:
            views: what the embedder made of each of ``batch.views``.
            batch: the images' labels, rows and captions.

        Raises:
            ValueError: another number of views than ``n_views``, or embeds and labels do not match.
        """
        self.check(views, batch)
        embeds = at_least_float32(views[0].embeds)
        with torch.autocast(embeds.device.type, enabled=False):
            return self(embeds, batch.labels)

    def after_step(self, embedder: nn.Module) -> None:
        """Follow the embedder after an optimizer step: a momentum encoder, unit prototypes."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The criterion's own trainable parameters, as groups for an optimizer.

        Args:
            lr: learning rate of the embedder, and theirs unless a criterion has one of its own.

        Returns:
            dicts with "params" and "lr", and "weight_decay" where it has to differ from the run's.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": lr}] if parameters else []

    def check(self, views: Sequence[Embedding], batch: Batch) -> None:
        """Raise ValueError where ``compute`` cannot work with what it is given."""
        name = type(self).__name__
        if len(views) != self.n_views:
            raise ValueError(f"{name} needs {self.n_views} view(s) of each image, got {len(views)}")
        for view in views:
            if view.embeds.ndim != 2 or batch.labels.shape != view.embeds.shape[:1]:
                raise ValueError(
                    f"{name} needs embeds (B, D) and labels (B,), "
                    f"got {tuple(view.embeds.shape)} and {tuple(batch.labels.shape)}"
                )


class PairCriterion(Criterion, ABC):
    """An objective over pairs of images: those of a batch, or of a batch and other references.

    ``criteria.xbm`` gives it a memory of earlier batches as references. Gradients flow through the
    batch's embeddings alone then.
    """

    @abstractmethod
    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        """The loss: embeds (B, D), labels (B,) int64; returns a differentiable scalar.

        Args:
            references: what each image is compared with; None is the batch itself, in which an
                image is no positive of its own.
        """


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_label_range(labels: Tensor, n_classes: int) -> None:
    """Raise ValueError unless every label is in [0, n_classes).

    On a GPU this would wait for the device at every step; there the indexing kernel asserts it.
    """
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= n_classes:
            raise ValueError(f"label {low if low < 0 else high} is not in [0, {n_classes})")
