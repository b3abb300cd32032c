"""Semantic scores: how closely the nearest images of *other* classes are related to the query.

One value for each query of a block. If there are fewer than k images of other classes, all are
used; without any, a query scores NaN and is left out of averages.
"""

import torch
from torch import Tensor

from metrics.gallery import Gallery
from metrics.search import Ranking


def wrong_word_similarity(gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) mean cosine, in [-1, 1], between the words of the query and of its k wrong images."""
    assert gallery.class_words is not None
    asked, wrong, found = _wrong(gallery, ranking, k)
    words = gallery.class_words.to(wrong.device)
    query_words = words[asked]  # (B, Dw)
    # One neighbour at a time: (B, k, Dw) would be the largest tensor of the evaluation.
    sims = [(query_words * words[column]).sum(dim=1) for column in wrong.unbind(dim=1)]
    return _mean_found(torch.stack(sims, dim=1) if sims else found.float(), found)


def wrong_group_share(gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) share of the query's k wrong images that belong to its group, in [0, 1]."""
    asked, wrong, found = _wrong(gallery, ranking, k)
    groups = gallery.groups.to(wrong.device)
    same = groups[wrong] == groups[asked][:, None]  # (B, k)
    return _mean_found(same.float(), found)


def _wrong(gallery: Gallery, ranking: Ranking, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return classes of queries (B,) and of wrong images (B, <= k), and a mask of the padding."""
    device = ranking.rows.device
    asked = gallery.asking.labels.to(device)[ranking.rows]
    wrong = ranking.wrong[:, :k]
    return asked, gallery.labels.to(device)[wrong.clamp(min=0)], wrong >= 0


def _mean_found(values: Tensor, found: Tensor) -> Tensor:
    """Return the (B,) float64 mean of the found values, NaN without any."""
    return (values.double() * found).sum(dim=1) / found.sum(dim=1)
