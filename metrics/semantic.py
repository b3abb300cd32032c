"""How reasonable errors are: what the nearest images of *other* classes have to do with the query.

One value for each query of a block. Images of the query's own class are passed over, not counted
as right, so the scores say nothing of how often the retrieval errs. Fewer than k images of other
classes are all taken; a query that has none scores NaN, and averages leave it out. Queries alone in
their class count like any other.
"""

import torch
from torch import Tensor

from metrics.gallery import Gallery, Ranking


def wrong_word_similarity(gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) mean cosine, in [-1, 1], of the query's class's words and its k wrong images'."""
    assert gallery.class_words is not None
    wrong, labels, found = _wrong(gallery, ranking, k)
    words = gallery.class_words.to(wrong.device)
    query_words = words[labels[ranking.rows]]  # (B, Dw)
    # One neighbour at a time: (B, k, Dw) would be the largest tensor of the evaluation.
    sims = [(query_words * words[column]).sum(dim=1) for column in wrong.unbind(dim=1)]
    return _mean_found(torch.stack(sims, dim=1) if sims else found.float(), found)


def wrong_group_share(gallery: Gallery, ranking: Ranking, k: int) -> Tensor:
    """(B,) share of the query's k wrong images that are of its own group, in [0, 1]."""
    assert gallery.class_groups is not None
    wrong, labels, found = _wrong(gallery, ranking, k)
    known = {name: index for index, name in enumerate(dict.fromkeys(gallery.class_groups))}
    groups = torch.tensor([known[name] for name in gallery.class_groups], device=wrong.device)
    same = groups[wrong] == groups[labels[ranking.rows]][:, None]  # (B, k)
    return _mean_found(same.float(), found)


def _wrong(gallery: Gallery, ranking: Ranking, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Classes (B, <= k) of the k wrong images, all labels (N,), and which (B, <= k) are images."""
    labels = gallery.labels.to(ranking.rows.device)
    wrong = ranking.wrong[:, :k]
    return labels[wrong.clamp(min=0)], labels, wrong >= 0


def _mean_found(values: Tensor, found: Tensor) -> Tensor:
    """(B,) float64 mean of the values that are found, NaN where none is."""
    return (values.double() * found).sum(dim=1) / found.sum(dim=1)
