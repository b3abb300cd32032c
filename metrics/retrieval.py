"""Scores of a ranking: one value for each query of a block.

In the formulas r_1 < r_2 < ... are the ranks of the R other images of the query's class, so that
precision at r_j is j / r_j. All scores are in [0, 1]. A query that has no other image of its class
(R = 0) scores NaN, and averages leave it out.
"""

import torch
from torch import Tensor

from metrics.gallery import Gallery, Ranking


def recall(_gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) 1 where one of the k nearest is of the query's class: r_1 <= k."""
    hit = ranking.ranks[:, :1].sum(dim=1).le(k)
    return _where_positives(ranking, hit.double())


def average_precision(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) AP over the whole ranking: (1/R) sum_j j / r_j."""
    return _where_positives(ranking, _precisions(ranking).sum(dim=1) / ranking.n_positives)


def average_precision_at_r(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) the same sum over hits among the R nearest: (1/R) sum over r_j <= R of j / r_j.

    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020 (MAP@R).
    """
    near = ranking.ranks <= ranking.n_positives[:, None]
    return _where_positives(ranking, (_precisions(ranking) * near).sum(1) / ranking.n_positives)


def r_precision(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) share of the R nearest that are of the query's class."""
    near = (ranking.ranks > 0) & (ranking.ranks <= ranking.n_positives[:, None])
    return _where_positives(ranking, near.sum(dim=1).double() / ranking.n_positives)


def average_precision_1000(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) AP over the 1000 nearest by the definition of earlier work; for comparison only.

    (1/(R+1)) sum over r_j <= 1000 of j / r_j. The divisor is the class size with the query in it,
    so a perfect ranking scores R / (R + 1). Source: the code of Roth et al., Revisiting Training
    Strategies and Generalization Performance in Deep Metric Learning, ICML 2020, which in a gallery
    of fewer than 1001 images also takes the last image for the missing ones; this does not.
    """
    near = ranking.ranks <= 1000
    return _where_positives(
        ranking, (_precisions(ranking) * near).sum(dim=1) / (ranking.n_positives + 1)
    )


def _precisions(ranking: Ranking) -> Tensor:
    """(B, R) float64: j / r_j, 0 in the filler."""
    j = torch.arange(1, ranking.ranks.shape[1] + 1, device=ranking.ranks.device)
    return (ranking.ranks > 0) * j.double() / ranking.ranks.clamp(min=1)


def _where_positives(ranking: Ranking, values: Tensor) -> Tensor:
    return values.where(ranking.n_positives > 0, torch.nan)
