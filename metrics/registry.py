"""Which function computes the metric of a name."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from metrics.clustering import ami, f1, nmi
from metrics.gallery import Gallery, Ranking
from metrics.geometry import (
    alignment,
    inter_distance,
    intra_distance,
    intra_over_inter,
    potential,
    rho_spectrum,
)
from metrics.retrieval import (
    average_precision,
    average_precision_1000,
    average_precision_at_r,
    average_precision_c,
    average_precision_lim,
    group_recall,
    precision,
    r_precision,
    recall,
    reciprocal_rank,
)
from metrics.semantic import wrong_group_share, wrong_word_similarity
from utilities.registry import closest_first


@dataclass(frozen=True)
class Metric:
    """A metric as a name asks for it; one of ``score``, ``compare`` and ``describe`` computes it.

    Args:
        score: a block's ranking and k -> (B,) values of its queries, of which the mean is reported.
        compare: (N,) labels and (N,) clusters -> value.
        describe: the gallery, k and whether by cosine -> value.
        needs: field of the gallery that may not be None.
        reads: field of the ranking that ``score`` reads and that the search fills only when asked.
        log: whether the logarithm of the mean is reported.
        signed: whether ``@k`` may be negative.
        fraction: whether the value is one, which is printed in percent.
        cosine: by cosine instead of euclidean distance.
    """

    score: Callable[[Gallery, Ranking, int], Tensor] | None = None
    compare: Callable[[Tensor, Tensor], float] | None = None
    describe: Callable[[Gallery, int, bool], float] | None = None
    needs: str | None = None
    reads: Literal["wrong", "group_ranks", "potentials"] | None = None
    log: bool = False
    signed: bool = False
    fraction: bool = True
    k: int = 0
    cosine: bool = False

    def finish(self, means: Tensor) -> Tensor:
        """What to report for means of ``score`` over queries."""
        return means.log() if self.log else means


METRICS: dict[str, Metric] = {
    # of rankings
    "recall@k": Metric(recall),
    "precision@k": Metric(precision),
    "R_precision": Metric(r_precision),
    "mAP": Metric(average_precision),
    "mAP@R": Metric(average_precision_at_r),
    "mAP_1000": Metric(average_precision_1000),
    "mAP_lim": Metric(average_precision_lim),
    "mAP_c": Metric(average_precision_c),
    "MRR": Metric(reciprocal_rank),
    # of clusters
    "nmi": Metric(compare=nmi),
    "ami": Metric(compare=ami),
    "f1": Metric(compare=f1),
    # of errors
    "group_recall@k": Metric(group_recall, needs="class_groups", reads="group_ranks"),
    "wrong_word_similarity@k": Metric(wrong_word_similarity, needs="class_words", reads="wrong"),
    "wrong_group_share@k": Metric(wrong_group_share, needs="class_groups", reads="wrong"),
    # of the space
    "intra_distance": Metric(describe=intra_distance, fraction=False),
    "inter_distance": Metric(describe=inter_distance, fraction=False),
    "intra_over_inter": Metric(describe=intra_over_inter, fraction=False),
    "dists@intra": Metric(describe=intra_distance, fraction=False, cosine=True),
    "dists@inter": Metric(describe=inter_distance, fraction=False, cosine=True),
    "dists@intra_over_inter": Metric(describe=intra_over_inter, fraction=False, cosine=True),
    "alignment": Metric(alignment, fraction=False, cosine=True),
    "uniformity": Metric(potential, reads="potentials", log=True, fraction=False, cosine=True),
    "rho_spectrum@k": Metric(describe=rho_spectrum, signed=True, fraction=False),
}


def parse(name: str) -> Metric:
    """The metric that ``name`` asks for.

    Raises:
        ValueError: there is none; lists the known names, closest first.
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
            f"--evaluation_metrics {name} is unknown; known, closest first: "
            + ", ".join(closest_first(pattern, METRICS))
            + "; k is a number from 1 (of rho_spectrum also from -1 down), and a leading c_ takes "
            "cosine for euclidean distance"
        )
    return replace(metric, k=int(k or 0), cosine=metric.cosine or space == "c")


def validate(
    names: Iterable[str],
    class_words: Tensor | None = None,
    class_groups: tuple[str, ...] | None = None,
) -> None:
    """Refuse, before anything is embedded, what cannot be computed with these words and groups.

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
