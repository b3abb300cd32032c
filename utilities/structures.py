"""The tensors passed between folders: batches, embeddings, triplets; and the size of the input."""

from typing import NamedTuple

import torch
from torch import Tensor

from utilities.device import send


class Embedding(NamedTuple):
    """The output of an embedder for B images."""

    embeds: Tensor  # (B, D), unit rows when the architecture normalises
    features: Tensor  # (B, F), pooled, before the embedding layer
    feature_map: Tensor  # (B, M, h, w); M is F, save for layers after pooling that change it


class Batch(NamedTuple):
    """B tuples of images as one training step sees them.

    The sampler decides the number of views: one for metric learning, two for a contrastive pair.
    Labels, rows and captions are those of the first view.
    """

    views: tuple[Tensor, ...]  # each (B, 3, H, W): uint8, after ``datasets.finish`` float32
    labels: Tensor  # (B,) int64, class index within the ImageSet
    rows: Tensor  # (B,) int64, row in the ImageSet
    captions: tuple[str, ...] = ()
    colours: tuple[Tensor | None, ...] = ()  # per view, see datasets.colour; () for none

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device`` without waiting, its images in channels_last for speed."""
        return self._replace(
            views=tuple(
                send(view, device).contiguous(memory_format=torch.channels_last)
                for view in self.views
            ),
            labels=send(self.labels, device),
            rows=send(self.rows, device),
            captions=tuple(self.captions),  # pinning memory may have made it a list
            colours=tuple(self.colours),
        )


class Triplets(NamedTuple):
    """T index triplets into a batch; T = 0 is allowed."""

    anchors: Tensor  # (T,) int64
    positives: Tensor  # (T,) int64
    negatives: Tensor  # (T,) int64


class References(NamedTuple):
    """Embeddings from a memory, which a batch is compared with instead of with itself."""

    embeds: Tensor  # (R, D), without gradient
    labels: Tensor  # (R,) int64


def input_size(image_size: int, augmentation: str = "base") -> int:
    """Return the side of the network's input in pixels; "big" enlarges it by 256 / 224."""
    return round(image_size * 256 / 224) if augmentation == "big" else image_size
