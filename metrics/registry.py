"""The metrics by name."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

import metrics.clustering as clustering
import metrics.geometry as geometry
import metrics.retrieval as retrieval
import metrics.semantic as semantic
from metrics.gallery import Gallery
from metrics.search import Ranking
from utilities.registry import closest_first


@dataclass(frozen=True)
class Metric:
    """A metric, computed by one of ``score``, ``compare`` and ``describe``."""

    # A block's ranking and k -> (B,) values of its queries, of which the mean is reported.
    score: Callable[[Gallery, Ranking, int], Tensor] | None = None
    compare: Callable[[Tensor, Tensor], float] | None = None  # (N,) labels, (N,) clusters -> value
    describe: Callable[[Gallery, int, bool], float] | None = None  # by k and whether by cosine
    needs: str | None = None  # field of the gallery that must not be None
    # Field of the ranking that ``score`` reads and that the search fills only on request.
    reads: Literal["wrong", "group_ranks", "potentials"] | None = None
    log: bool = False  # whether the logarithm of the mean is reported
    signed: bool = False  # whether @k may be negative
    fraction: bool = True  # printed in percent
    # Of metrics of search by words: whether the names of classes or the images are the queries.
    words_by: Literal["words", "images"] | None = None
    k: int = 0
    cosine: bool = False  # instead of euclidean distance

    def finish(self, means: Tensor) -> Tensor:
        """Return the value to report for means of ``score`` over queries."""
        return means.log() if self.log else means


_intra, _inter, _ratio = (
    Metric(describe=describe, fraction=False)
    for describe in (geometry.intra_distance, geometry.inter_distance, geometry.intra_over_inter)
)

METRICS: dict[str, Metric] = {
    # of rankings
    "recall@k": Metric(retrieval.recall),
    "precision@k": Metric(retrieval.precision),
    "R_precision": Metric(retrieval.r_precision),
    "mAP": Metric(retrieval.average_precision),
    "mAP@R": Metric(retrieval.average_precision_at_r),
    "mAP_1000": Metric(retrieval.average_precision_1000),
    "mAP_lim": Metric(retrieval.average_precision_lim),
    "mAP_c": Metric(retrieval.average_precision_c),
    "MRR": Metric(retrieval.reciprocal_rank),
    # of clusters
    "nmi": Metric(compare=clustering.nmi),
    "ami": Metric(compare=clustering.ami),
    "f1": Metric(compare=clustering.f1),
    # of errors
    "group_recall@k": Metric(retrieval.group_recall, needs="class_groups", reads="group_ranks"),
    "wrong_word_similarity@k": Metric(
        semantic.wrong_word_similarity, needs="class_words", reads="wrong"
    ),
    "wrong_group_share@k": Metric(semantic.wrong_group_share, needs="class_groups", reads="wrong"),
    # of search by words
    "word_recall@k": Metric(retrieval.recall, words_by="words", cosine=True),
    "word_mAP": Metric(retrieval.average_precision, words_by="words", cosine=True),
    "named@k": Metric(retrieval.recall, words_by="images", cosine=True),
    # of the space
    "intra_distance": _intra,
    "inter_distance": _inter,
    "intra_over_inter": _ratio,
    "dists@intra": replace(_intra, cosine=True),
    "dists@inter": replace(_inter, cosine=True),
    "dists@intra_over_inter": replace(_ratio, cosine=True),
    "alignment": Metric(geometry.alignment, fraction=False, cosine=True),
    "uniformity": Metric(
        geometry.potential, reads="potentials", log=True, fraction=False, cosine=True
    ),
    "rho_spectrum@k": Metric(describe=geometry.rho_spectrum, signed=True, fraction=False),
}


def parse(name: str) -> Metric:
    """Return the metric called ``name``.

    Raises:
        ValueError: the name is unknown; lists the known names, closest first.
    """
    match = re.fullmatch(r"(?:([ec])_)?(.+?)(?:@(-?[1-9][0-9]*))?", name)
    space, base, k = match.groups() if match else (None, name, None)
    pattern = f"{base}@k" if k else base
    metric = METRICS.get(pattern)
    if (
        metric is None
        or pattern.endswith("@k") != bool(k)
        or (k and k[0] == "-" and not metric.signed)
    ):
        raise ValueError(
            f"metric {name} of --evaluation_metrics or --storage_metrics is unknown; known, "
            "closest first: "
            + ", ".join(closest_first(pattern, METRICS))
            + "; k is a number from 1 (for rho_spectrum also from -1 down), and a leading c_ means "
            "cosine instead of euclidean distance"
        )
    return replace(metric, k=int(k or 0), cosine=metric.cosine or space == "c")


def validate(
    names: Iterable[str],
    class_words: Tensor | None = None,
    class_groups: tuple[str, ...] | None = None,
) -> None:
    """Raise ValueError for an unknown metric, or one that needs words or groups not given."""
    given = {"class_words": class_words, "class_groups": class_groups}
    for name in names:
        needs = parse(name).needs
        if needs and given[needs] is None:
            what = {"class_words": "embedded words", "class_groups": "groups"}[needs]
            raise ValueError(
                f"metric {name} needs {what} of the classes, which are missing; "
                f"leave it out, or give the gallery {needs}"
            )
