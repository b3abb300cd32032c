"""Scores of an embedded image set, by name.

A name is ``[e_|c_]<metric>``: ``e_`` ranks, clusters and measures by euclidean distance and is the
default, ``c_`` by cosine; ``@k`` stands for any k >= 1, as in ``c_recall@4``. Values are fractions
in [0, 1], and NaN if no query counts, except for words, distances, logarithms and divergences; each
function gives its range. ``alignment``, ``uniformity`` and the legacy names ``dists@...`` are
defined on unit rows and mean the same with either prefix.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from metrics.gallery import Gallery, Queries
from metrics.registry import METRICS, Metric, parse, validate
from metrics.search import BLOCK_BYTES, Ranking, rank
from metrics.summary import Interval, bootstrap, per_class

__all__ = [
    "METRICS",
    "Gallery",
    "Interval",
    "Metric",
    "Queries",
    "Ranking",
    "bootstrap",
    "compute",
    "measure",
    "parse",
    "per_class",
    "per_query",
    "validate",
]


def compute(
    names: Iterable[str], gallery: Gallery, *, block_bytes: int = BLOCK_BYTES
) -> dict[str, float]:
    """Return the named scores of a gallery."""
    return measure(names, gallery, block_bytes=block_bytes)[0]


def measure(
    names: Iterable[str], gallery: Gallery, *, block_bytes: int = BLOCK_BYTES
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the named scores of a gallery, and of each query, as ``per_query``."""
    metrics = {name: parse(name) for name in names}
    queries = per_query(metrics, gallery, block_bytes=block_bytes)
    scores = {}
    for name, metric in metrics.items():
        if metric.compare:
            clusters = gallery.spherical_clusters if metric.cosine else gallery.clusters
            scores[name] = metric.compare(gallery.labels, clusters)
        elif metric.describe:
            scores[name] = metric.describe(gallery, metric.k, metric.cosine)
        else:
            scores[name] = float(metric.finish(queries[name].nanmean()))
    return scores, queries


def per_query(
    names: Iterable[str], gallery: Gallery, *, block_bytes: int = BLOCK_BYTES
) -> dict[str, Tensor]:
    """Return (Q,) float64 on the CPU: the score of each query, NaN if it does not count.

    Metrics of clusters or of the space are skipped. For ``uniformity`` these are the values before
    the logarithm. Raises ValueError as ``validate``; ``block_bytes`` as in ``metrics.search.rank``.
    """
    names = list(names)
    validate(names, gallery.class_words, gallery.class_groups)
    metrics = {name: metric for name in names if (metric := parse(name)).score}
    n_queries = len(gallery.asking.labels)
    values = {name: torch.full((n_queries,), torch.nan, dtype=torch.float64) for name in metrics}

    views = {name: gallery.unit if metric.cosine else gallery for name, metric in metrics.items()}
    for view in {id(view): view for view in views.values()}.values():
        members = {name: metric for name, metric in metrics.items() if views[name] is view}
        reads = {metric.reads for metric in members.values()}
        for ranking in rank(
            view,
            n_wrong=max(metric.k * (metric.reads == "wrong") for metric in members.values()),
            group_ranks="group_ranks" in reads,
            potentials="potentials" in reads,
            block_bytes=block_bytes,
        ):
            rows = ranking.rows.cpu()
            for name, metric in members.items():
                assert metric.score is not None
                values[name][rows] = metric.score(view, ranking, metric.k).cpu()
    return values
