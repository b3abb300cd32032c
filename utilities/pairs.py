"""Pairs of a batch: which are of one class, and how far apart they are."""

import torch
from torch import Tensor


def pair_masks(labels: Tensor, reference_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the masks of positive and of negative references of each image, (B, R) bool each.

    Labels are (B,) and (R,) int64. Without references the batch is compared with itself; an image
    is then not its own positive, but a duplicate of it is.
    """
    itself = reference_labels is None
    same = labels[:, None] == (labels if reference_labels is None else reference_labels)
    negative = ~same
    return (same.fill_diagonal_(False) if itself else same), negative


def pairwise_distances(embeds: Tensor, references: Tensor) -> Tensor:
    """Return Euclidean distances (B, R) of the rows of (B, D) and (R, D), by one matrix product."""
    squares = embeds.square().sum(dim=1)
    others = squares if references is embeds else references.square().sum(dim=1)
    products = torch.addmm(others, embeds, references.T, alpha=-2)
    return products.add_(squares[:, None]).clamp_(min=0).sqrt_()
