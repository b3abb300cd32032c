"""Pairs of a batch: which are of one class, and how far apart they are."""

import torch
from torch import Tensor


def pair_masks(labels: Tensor, reference_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the masks of positive and of negative references of each image, (B, R) bool each.

    Args:
        labels: (B,) int64, of the images.
        reference_labels: (R,) int64; None compares the batch with itself. An image is then not its
            own positive; it is left out by its row, so that a duplicate counts.
    """
    itself = reference_labels is None
    same = labels[:, None] == (labels if reference_labels is None else reference_labels)
    negative = ~same
    return (same.fill_diagonal_(False) if itself else same), negative


def pairwise_distances(embeds: Tensor, references: Tensor) -> Tensor:
    """Return Euclidean distances (B, R) of the rows of (B, D) and (R, D), by one matrix product.

    Distances that are small relative to the embeddings' length keep few digits.
    """
    squares = embeds.square().sum(dim=1)
    others = squares if references is embeds else references.square().sum(dim=1)
    products = torch.addmm(others, embeds, references.T, alpha=-2)
    return products.add_(squares[:, None]).clamp_(min=0).sqrt_()
