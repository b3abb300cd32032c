"""Agreement of k-means clusters with classes: mutual information and pairwise F1."""

import faiss
import numpy as np
import torch
from torch import Tensor

from utilities.knn import on_gpu


def kmeans(
    points: Tensor,
    n_clusters: int,
    *,
    seed: int,
    spherical: bool = False,
    max_iterations: int = 20,
    tolerance: float = 3e-4,
) -> Tensor:
    """Return the (N,) int64 clusters of (N, D) float32 points by FAISS's k-means.

    It starts from points drawn by ``seed`` and stops when an iteration improves the objective by at
    most ``tolerance`` of itself. An empty cluster takes half of a large one. ``spherical`` clusters
    unit rows by cosine, with unit centroids.
    """
    data = np.ascontiguousarray(points.detach().cpu().numpy(), dtype=np.float32)
    solver = faiss.Kmeans(
        data.shape[1],
        n_clusters,
        niter=1,
        spherical=spherical,
        min_points_per_centroid=1,  # classes of two images are common
        max_points_per_centroid=len(data),  # use all points
    )
    solver.index = on_gpu(solver.index, points.device)
    centroids = data[np.random.default_rng(seed).choice(len(data), n_clusters, replace=False)]
    previous = None
    for _ in range(max_iterations):
        solver.train(data, init_centroids=centroids)
        centroids, objective = solver.centroids, solver.obj[-1]
        if previous is not None and abs(previous - objective) <= tolerance * abs(previous):
            break
        previous = objective
    _, clusters = solver.index.search(data, 1)
    return torch.from_numpy(clusters[:, 0]).to(points.device)


def nmi(labels: Tensor, clusters: Tensor) -> float:
    """Return normalised mutual information, 2 I / (H(class) + H(cluster)), in [0, 1].

    One class in one cluster gives 1, as in scikit-learn.
    """
    shared, entropy = _information(*_counts(labels, clusters))
    return shared / entropy if entropy else 1.0


def ami(labels: Tensor, clusters: Tensor) -> float:
    """Return adjusted mutual information, which is 0 on average for random clusters, at most 1.

    (I - E) / ((H(class) + H(cluster)) / 2 - E), where E is the mean of I over all partitions of the
    images into clusters of the same sizes; scikit-learn's is far slower for thousands of classes.
    One class in one cluster, or each image in its own, give 1. Source: Vinh et al., Information
    Theoretic Measures for Clusterings Comparison, JMLR 2010, with the arithmetic mean of entropies.
    """
    joint, classes, groups = _counts(labels, clusters)
    if len(classes) == len(groups) and len(classes) in (1, len(labels)):
        return 1.0
    shared, entropy = _information(joint, classes, groups)
    expected = _expected_information(classes.cpu(), groups.cpu())
    scale = entropy - expected
    # If chance explains everything, rounding may leave any sign; scikit-learn's remedy.
    least = torch.finfo(torch.float64).eps
    return (shared - expected) / (min(scale, -least) if scale < 0 else max(scale, least))


def f1(labels: Tensor, clusters: Tensor) -> float:
    """Return the F1 of pairs that share a cluster against pairs that share a class, in [0, 1].

    2 TP / (pairs in clusters + pairs in classes); NaN if there is no such pair. Source: Oh Song et
    al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016.
    """
    joint, classes, groups = _counts(labels, clusters)
    shared, in_class, in_cluster = (
        int((counts * (counts - 1)).sum()) for counts in (joint, classes, groups)
    )  # ordered pairs, twice the unordered ones
    return 2 * shared / (in_class + in_cluster) if in_class + in_cluster else float("nan")


def _counts(labels: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count points in each filled cell of the class-cluster table, each class, each cluster."""
    cells = labels.to(clusters.device) * (int(clusters.max()) + 1) + clusters
    joint, classes, groups = (
        ids.unique(return_counts=True)[1] for ids in (cells, labels, clusters)
    )
    return joint, classes, groups


def _information(joint: Tensor, classes: Tensor, groups: Tensor) -> tuple[float, float]:
    """Return I(class; cluster) >= 0 and the mean of H(class) and H(cluster), in nats."""
    n = classes.sum()
    h_joint, h_class, h_cluster = (
        float(-(p * p.log()).sum())
        for p in (part.double() / n for part in (joint, classes, groups))
    )
    return max(0.0, h_class + h_cluster - h_joint), (h_class + h_cluster) / 2


def _expected_information(classes: Tensor, groups: Tensor) -> float:
    """Return the mean of I over random partitions of these (C,) and (K,) sizes, in nats.

    Vinh et al., eq. 24a: a class of a and a cluster of b images share h with hypergeometric
    probability, and h of N images add (h/N) log(N h / (a b)).
    """
    n = int(classes.sum())
    log_factorial = torch.arange(n + 1).double().add(1).lgamma()
    b, n_b = (part[:, None] for part in groups.unique(return_counts=True))  # (U, 1)
    expected = 0.0
    for a, n_a in zip(*(part.tolist() for part in classes.unique(return_counts=True)), strict=True):
        h = torch.arange(1, min(a, int(b.max())) + 1)  # (H,)
        possible = (h <= b) & (h >= a + b - n)  # (U, H)
        rest = (b - h).clamp(min=0), (n - a - b + h).clamp(min=0)
        log_p = (  # of h shared images
            log_factorial[a] + log_factorial[b] + log_factorial[n - a] + log_factorial[n - b]
        ) - (
            log_factorial[n] + log_factorial[h] + log_factorial[a - h]
            + log_factorial[rest[0]] + log_factorial[rest[1]]
        )  # fmt: skip
        share = h.double() / n
        terms = share * (share * n * n / (a * b)).log() * log_p.exp()
        expected += n_a * float((n_b * terms * possible).sum())
    return expected
