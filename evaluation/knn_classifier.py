"""Classification by a weighted vote of the nearest training images.

Wu, Xiong, Yu and Lin, Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
CVPR 2018, section 3.4: each of the k nearest images votes for its class with weight exp(cos / T).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from utilities.knn import nearest_neighbours

TEMPERATURE = 0.07
BLOCK = 1 << 24  # votes at a time


def classify(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    ks: Sequence[int] = (20, 200),
    *,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> dict[int, Tensor]:
    """Return the (M,) int64 classes of ``test`` (M, D) predicted from ``train`` (N, D), for each k.

    A k beyond the training images takes them all. Among classes with equal votes the lowest wins.
    The smaller the ``temperature`` T, the more the nearest images decide.
    """
    k_most = min(max(ks), len(train))
    near = nearest_neighbours(test, train, k_most, cosine=True, device=device)
    n_classes = int(train_labels.max()) + 1
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    n_rows = max(1, BLOCK // max(n_classes, k_most))
    for rows, distances in zip(near.rows.split(n_rows), near.distances.split(n_rows), strict=True):
        # exp((cos − cos of the nearest) / T): a query's votes share a factor, and none overflows.
        weights = ((distances[:, :1] - distances).double() / temperature).exp()
        classes = train_labels.cpu()[rows]
        votes = weights.new_zeros(len(rows), n_classes)
        done = 0
        for k in sorted(set(ks)):  # more neighbours only add votes
            more = slice(done, min(k, k_most))
            votes.scatter_add_(1, classes[:, more], weights[:, more])
            predicted[k].append(votes.argmax(dim=1))
            done = min(k, k_most)
    return {k: torch.cat(parts) for k, parts in predicted.items()}
