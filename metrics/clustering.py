"""How well k-means finds the classes again: normalised mutual information and pairwise F1."""

import faiss
import numpy as np
import torch
from torch import Tensor


def kmeans(
    points: Tensor,
    n_clusters: int,
    *,
    seed: int,
    spherical: bool = False,
    max_iterations: int = 20,
    tolerance: float = 3e-4,
) -> Tensor:
    """Cluster by FAISS's k-means, on its GPU build when there is one and points are on a GPU.

    It starts from points drawn by ``seed`` and stops when an iteration betters the objective by no
    more than ``tolerance`` of itself. An empty cluster takes half of a large one.

    Args:
        points: (N, D) float32, N >= n_clusters.
        spherical: cluster by cosine, with unit centroids; points are unit rows then.

    Returns:
        (N,) int64, each point's cluster, on the device of ``points``.
    """
    data = np.ascontiguousarray(points.detach().cpu().numpy(), dtype=np.float32)
    solver = faiss.Kmeans(
        data.shape[1],
        n_clusters,
        niter=1,
        spherical=spherical,
        gpu=points.is_cuda and hasattr(faiss, "StandardGpuResources"),
        min_points_per_centroid=1,  # classes of two images are the rule here, not a mistake
        max_points_per_centroid=len(data),  # all points count
    )
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
    """Normalised mutual information, 2 I(class; cluster) / (H(class) + H(cluster)), in [0, 1].

    One class in one cluster gives 1, as in scikit-learn.

    Args:
        labels, clusters: (N,) int64, >= 0.
    """
    joint, classes, groups = (counts.double() / len(labels) for counts in _counts(labels, clusters))
    h_joint, h_class, h_cluster = (float(-(p * p.log()).sum()) for p in (joint, classes, groups))
    if h_class + h_cluster == 0:
        return 1.0
    return max(0.0, 2 * (h_class + h_cluster - h_joint) / (h_class + h_cluster))


def f1(labels: Tensor, clusters: Tensor) -> float:
    """F1 of the pairs that share a cluster against the pairs that share a class, in [0, 1].

    Source: Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016,
    whose precision and recall over pairs combine to 2 TP / (pairs in clusters + pairs in classes).
    NaN when there is no such pair.

    Args:
        labels, clusters: (N,) int64, >= 0.
    """
    joint, classes, groups = _counts(labels, clusters)
    shared, in_class, in_cluster = (
        int((counts * (counts - 1)).sum()) for counts in (joint, classes, groups)
    )  # ordered pairs, twice the unordered ones
    return 2 * shared / (in_class + in_cluster) if in_class + in_cluster else float("nan")


def _counts(labels: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points in each filled cell of the class-cluster table, in each class, in each cluster."""
    cells = labels.to(clusters.device) * (int(clusters.max()) + 1) + clusters
    joint, classes, groups = (
        ids.unique(return_counts=True)[1] for ids in (cells, labels, clusters)
    )
    return joint, classes, groups
