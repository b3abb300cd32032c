"""Scores of a ranking: one value in [0, 1] for each query of a block.

r_1 < r_2 < ... are the ranks of the R other images of the query's class, so that precision at r_j
is j / r_j. A query with R = 0 scores NaN and is left out of averages.
"""

import torch
from torch import Tensor

from metrics.gallery import Gallery
from metrics.search import Ranking


def recall(_gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) 1 if one of the k nearest is of the query's class: r_1 <= k."""
    return _where_positives(ranking, ranking.ranks[:, :1].sum(dim=1).le(k).double())


def precision(_gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) share of the k nearest that are of the query's class; at most R / k."""
    near = (ranking.ranks > 0) & (ranking.ranks <= k)
    return _where_positives(ranking, near.sum(dim=1).double() / k)


def reciprocal_rank(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) 1 / r_1; its mean is known as MRR."""
    return _where_positives(ranking, 1 / ranking.ranks[:, :1].sum(dim=1).double())


def group_recall(_gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) recall@k with groups of classes instead of classes; NaN if the group has no other image.

    Images of the query's own class count; among equal distances other groups come first.
    """
    return ranking.group_ranks.le(k).double().where(ranking.group_ranks > 0, torch.nan)


def average_precision(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) AP over the whole ranking: (1/R) sum_j j / r_j."""
    return _where_positives(ranking, _precisions(ranking).sum(dim=1) / ranking.n_positives)


def average_precision_at_r(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) AP among the R nearest: (1/R) sum over r_j <= R of j / r_j.

    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020 (MAP@R).
    """
    near = ranking.ranks <= ranking.n_positives[:, None]
    return _where_positives(ranking, (_precisions(ranking) * near).sum(1) / ranking.n_positives)


def r_precision(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) share of the R nearest that are of the query's class."""
    near = (ranking.ranks > 0) & (ranking.ranks <= ranking.n_positives[:, None])
    return _where_positives(ranking, near.sum(dim=1).double() / ranking.n_positives)


# The next three are only for comparison with the tables of Roth et al., Revisiting Training
# Strategies and Generalization Performance in Deep Metric Learning, ICML 2020. They divide by the
# size of the class in the gallery, the query included, so that a perfect ranking scores R / (R + 1)
# if images query each other. Their code drops the first neighbour as the query itself, counts
# queries alone in their class as zeros, and repeats the last image of a gallery that is too small;
# here a query is dropped by its row, such queries do not count, and missing images are no hits.


def average_precision_1000(gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) mAP_1000: (1/(R+1)) sum over r_j <= 1000 of j / r_j; 1/R with separate queries."""
    return _legacy_precision(gallery, ranking, 1000)


def average_precision_lim(gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) mAP_lim: the same over r_j <= 1023, the longest list of FAISS on a GPU."""
    return _legacy_precision(gallery, ranking, 1023)


def average_precision_c(gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) mAP_c: the same over r_j <= R + 1, the size of the class; nearly mAP@R."""
    return _legacy_precision(gallery, ranking)


def _legacy_precision(gallery: Gallery, ranking: Ranking, depth: int | None = None) -> Tensor:
    size = ranking.n_positives + int(gallery.queries is None)
    near = ranking.ranks <= (size[:, None] if depth is None else depth)
    return _where_positives(ranking, (_precisions(ranking) * near).sum(dim=1) / size)


def _precisions(ranking: Ranking) -> Tensor:
    """(B, R) float64: j / r_j, 0 in the padding."""
    j = torch.arange(1, ranking.ranks.shape[1] + 1, device=ranking.ranks.device)
    return (ranking.ranks > 0) * j.double() / ranking.ranks.clamp(min=1)


def _where_positives(ranking: Ranking, values: Tensor) -> Tensor:
    return values.where(ranking.n_positives > 0, torch.nan)
