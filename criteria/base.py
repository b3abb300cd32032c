"""The contract of every objective, and the checks that they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from utilities.pairs import pair_masks
from utilities.structures import Batch, Embedding, References


class Counting(nn.Module):
    """Keeps the plain integers named by ``counters`` in the state dict."""

    counters: ClassVar[tuple[str, ...]] = ()

    def get_extra_state(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.counters}

    def set_extra_state(self, state: Any) -> None:
        for name in self.counters:
            setattr(self, name, state[name])


class Criterion(nn.Module):
    """An objective over the embeddings of a batch, and its own parameters if it has any.

    A loss on embeddings and labels writes only ``forward``: ``compute`` checks the shapes and calls
    it on float32 outside autocast, since exponentials of scaled similarities overflow half
    precision. An objective that reads more of the batch overrides ``compute``, one with learning
    rates of its own ``param_groups``. Hyperparameters are keyword-only, collaborators are not.

    Attributes:
        n_views: views of each tuple of images that ``compute`` needs.
        reads: what the objective trains: "embeds", or "features" if it has a head of its own.
        gathers: if True, ``compute`` gets one process's share of the batch, and gathers what it
            compares (``utilities.distributed``); if False, the embeddings, labels and rows of all
            processes, and may read only these.
    """

    n_views: ClassVar[int] = 1
    reads: ClassVar[str] = "embeds"
    gathers: ClassVar[bool] = False

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeds (B, D) with labels (B,) int64, a differentiable scalar.

        A batch without any active pair gives a finite zero that still has a gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} is called through compute(views, batch)")

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        """Return the loss of a batch from the embedder's output for each of its views.

        Raises:
            ValueError: the number of views is not ``n_views``, or shapes do not match.
        """
        self.check(views, batch)
        embeds = at_least_float32(views[0].embeds)
        with torch.autocast(embeds.device.type, enabled=False):
            return self(embeds, batch.labels)

    def after_step(self, embedder: nn.Module) -> None:
        """Update what follows an optimizer step, such as a momentum encoder."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return groups of the criterion's own trainable parameters for an optimizer.

        ``lr`` is the embedder's; a group has a "weight_decay" where it differs from the run's. By
        default there is 0, as in the code of Roth et al., ICML 2020.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": lr, "weight_decay": 0.0}] if parameters else []

    def check(self, views: Sequence[Embedding], batch: Batch) -> None:
        """Raise ValueError if ``compute`` cannot work with these arguments."""
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

    ``criteria.xbm`` passes a memory of earlier batches as references; then only the batch's
    embeddings get a gradient.
    """

    @abstractmethod
    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        """Return the loss of embeds (B, D) with labels (B,) int64, a differentiable scalar.

        Without references the batch is compared with itself; an image is not its own positive.
        """


def positives_and_negatives(labels: Tensor, references: References | None) -> tuple[Tensor, Tensor]:
    """Return masks (B, R) of the references of each image's class and of other classes.

    Without references the batch is compared with itself, and an image is in neither of its masks.
    """
    return pair_masks(labels, None if references is None else references.labels)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; keep float32 and float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back afterwards."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def check_label_range(labels: Tensor, n_classes: int) -> None:
    """Raise ValueError unless every label is in [0, n_classes).

    Only on a CPU; a GPU would have to be waited for, and its indexing kernel asserts it.
    """
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= n_classes:
            raise ValueError(f"label {low if low < 0 else high} is not in [0, {n_classes})")


def require_finite(**values: float) -> None:
    """Raise ValueError, naming the argument, unless each value is finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value:g}")


def require_positive(**values: float) -> None:
    """Raise ValueError, naming the argument, unless each value is finite and above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and > 0; got {value:g}")


def require_at_least(low: int, **values: float) -> None:
    """Raise ValueError, naming the argument, unless each value is finite and at least ``low``."""
    for name, value in values.items():
        if not low <= value < math.inf:
            raise ValueError(f"{name} must be finite and >= {low}; got {value:g}")
