"""Which pairs of a batch are of one class, and how far apart they are."""

import torch
from torch import Tensor


def pair_masks(labels: Tensor, reference_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which references each image has as positives and which as negatives.

    Args:
        labels: (B,) int64, of the images.
        reference_labels: (R,) int64; None compares the batch with itself, and then an image is no
            positive of its own. It is left out by its place, so that a duplicate counts.

    Returns:
        positive, negative: (B, R) bool each.
    """
    itself = reference_labels is None
    same = labels[:, None] == (labels if reference_labels is None else reference_labels)
    negative = ~same
    return (same.fill_diagonal_(False) if itself else same), negative


def pairwise_distances(embeds: Tensor, references: Tensor) -> Tensor:
    """Euclidean distances of the rows of (B, D) and (R, D), from one matrix product: (B, R).

    Distances that are small beside the embeddings' length keep few digits.
    """
    squares = embeds.square().sum(dim=1)
    others = squares if references is embeds else references.square().sum(dim=1)
    products = torch.addmm(others, embeds, references.T, alpha=-2)
    return products.add_(squares[:, None]).clamp_(min=0).sqrt_()
