"""Scores of an embedded image set, by name.

A name is ``[e_|c_]<metric>``: ``e_`` ranks and clusters by euclidean distance and is the default,
``c_`` by cosine; ``@k`` stands for any k >= 1. So ``e_recall@1``, ``c_recall@4``, ``mAP@R``,
``c_nmi`` and ``wrong_word_similarity@10`` are names. Values are fractions, in [0, 1] (the cosine of
words in [-1, 1]), and NaN where no query counts.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metrics.clustering import f1, nmi
from metrics.gallery import BLOCK_BYTES, Gallery, Ranking
from metrics.retrieval import (
    average_precision,
    average_precision_1000,
    average_precision_at_r,
    r_precision,
    recall,
)
from metrics.semantic import wrong_group_share, wrong_word_similarity
from utilities.registry import closest_first

__all__ = ["METRICS", "Gallery", "Metric", "Ranking", "compute", "parse", "per_query", "validate"]


@dataclass(frozen=True)
class Metric:
    """A metric as a name asks for it; either ``score`` or ``compare`` computes it.

    Args:
        score: a block's ranking and k -> (B,) values of its queries, of which the mean is reported.
        compare: (N,) labels and (N,) clusters -> value.
        needs: field of the gallery that may not be None.
        reads_wrong: whether ``score`` reads the k nearest images of other classes.
        cosine: by cosine instead of euclidean distance.
    """

    score: Callable[[Gallery, Ranking, int], Tensor] | None = None
    compare: Callable[[Tensor, Tensor], float] | None = None
    needs: str | None = None
    reads_wrong: bool = False
    k: int = 0
    cosine: bool = False


METRICS: dict[str, Metric] = {
    "recall@k": Metric(recall),
    "mAP": Metric(average_precision),
    "mAP@R": Metric(average_precision_at_r),
    "mAP_1000": Metric(average_precision_1000),
    "R_precision": Metric(r_precision),
    "nmi": Metric(compare=nmi),
    "f1": Metric(compare=f1),
    "wrong_word_similarity@k": Metric(wrong_word_similarity, needs="class_words", reads_wrong=True),
    "wrong_group_share@k": Metric(wrong_group_share, needs="class_groups", reads_wrong=True),
}


def parse(name: str) -> Metric:
    """The metric that ``name`` asks for.

    Raises:
        ValueError: there is none; lists the known names, closest first.
    """
    match = re.fullmatch(r"(?:([ec])_)?(.+?)(?:@([1-9][0-9]*))?", name)
    space, base, k = match.groups() if match else (None, name, None)
    pattern = f"{base}@k" if k else base
    if pattern not in METRICS or pattern.endswith("@k") != bool(k):
        raise ValueError(
            f"--evaluation_metrics {name} is unknown; known, closest first: "
            + ", ".join(closest_first(pattern, METRICS))
            + "; k is a number from 1, and a leading c_ takes cosine for euclidean distance"
        )
    return replace(METRICS[pattern], k=int(k or 0), cosine=space == "c")


def validate(
    names: Iterable[str],
    class_words: Tensor | None = None,
    class_groups: tuple[str, ...] | None = None,
) -> None:
    """Refuse, before anything is embedded, what ``compute`` cannot do with these words and groups.

    Raises:
        ValueError: a name is unknown, or its metric needs words or groups that there are not.
    """
    given = {"class_words": class_words, "class_groups": class_groups}
    for name in names:
        needs = parse(name).needs
        if needs and given[needs] is None:
            what = {"class_words": "embedded words", "class_groups": "groups"}[needs]
            raise ValueError(
                f"--evaluation_metrics {name} needs {what} of the classes, which are missing; "
                f"leave it out, or give the gallery {needs}"
            )


def compute(
    names: Iterable[str], gallery: Gallery, *, block_bytes: int = BLOCK_BYTES
) -> dict[str, float]:
    """The named scores of a gallery; one search for each kind of distance serves them all.

    Args:
        block_bytes: what a block of the search may take; it bounds memory and changes no result.

    Raises:
        ValueError: as ``validate``.
    """
    metrics = {name: parse(name) for name in names}
    values = {
        name: float(queries.nanmean())
        for name, queries in per_query(metrics, gallery, block_bytes=block_bytes).items()
    }
    for name, metric in metrics.items():
        if metric.compare:
            clusters = gallery.spherical_clusters if metric.cosine else gallery.clusters
            values[name] = metric.compare(gallery.labels, clusters)
    return {name: values[name] for name in metrics}


def per_query(
    names: Iterable[str], gallery: Gallery, *, block_bytes: int = BLOCK_BYTES
) -> dict[str, Tensor]:
    """(N,) float64 on the CPU: the score of each image as a query, NaN where it does not count.

    Names of clustering metrics, which no single query scores, are passed over.

    Raises:
        ValueError: as ``validate``.
    """
    names = list(names)
    validate(names, gallery.class_words, gallery.class_groups)
    metrics = {name: parse(name) for name in names}
    metrics = {name: metric for name, metric in metrics.items() if metric.score}
    values = {name: torch.full((len(gallery),), torch.nan, dtype=torch.float64) for name in metrics}

    views = {name: gallery.unit if metric.cosine else gallery for name, metric in metrics.items()}
    for view in {id(view): view for view in views.values()}.values():
        members = {name: metric for name, metric in metrics.items() if views[name] is view}
        n_wrong = max(metric.k * metric.reads_wrong for metric in members.values())
        for ranking in view.search(n_wrong=n_wrong, block_bytes=block_bytes):
            rows = ranking.rows.cpu()
            for name, metric in members.items():
                assert metric.score is not None
                values[name][rows] = metric.score(view, ranking, metric.k).cpu()
    return values
