"""The queries that a report shows, with their neighbours, and its map of images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.report_data import ReportData

N_QUERIES = 4  # each of the best, of the median and of the worst
N_NEIGHBOURS = 8
MAP_IMAGES = 1500
PERPLEXITY = 30  # of t-SNE


class Retrieved(NamedTuple):
    """A query and what it finds."""

    row: int
    average_precision: float
    neighbours: list[int]  # rows, nearest first, without the query
    n_right: int  # R, the other images of its class that can be found
    n_found: int  # of them, those among the R nearest
    untrained: "Retrieved | None" = None  # the same query before training, if that is known


def retrievals(
    data: ReportData, each: int = N_QUERIES, k: int = N_NEIGHBOURS
) -> dict[str, list[Retrieved]]:
    """Return the best, median and worst queries by average precision, with their neighbours.

    Queries are of different classes as long as there are enough, and none is shown twice. The seed
    orders equal scores. An image alone in its class is not a query.
    """
    scores = data.average_precision.double()
    shuffled = torch.randperm(len(scores), generator=data.generator("queries"))
    shuffled = shuffled[~scores[shuffled].isnan()]
    ascending = shuffled[scores[shuffled].argsort(stable=True)].tolist()
    chosen = best_median_worst(
        *(ascending, ascending[::-1]),
        lambda rows, n: _of_different_classes(rows, data.labels, n),
        each,
    )
    found = {}
    for name, rows in chosen.items():
        found[name] = _found(data, data.after, rows, k)
        if data.before is not None:
            untrained = _found(data, data.before, rows, k)
            pairs = zip(found[name], untrained, strict=True)
            found[name] = [query._replace(untrained=before) for query, before in pairs]
    return found


def _found(data: ReportData, embeds: Tensor, rows: list[int], k: int) -> list[Retrieved]:
    """Return what these queries find among the embeddings; the precision is that of the data."""
    asked = torch.tensor(rows).long()
    order = neighbours_of(embeds, data.labels, asked, len(embeds), data.queries)  # (Q, M)
    right = data.labels[order] == data.labels[asked][:, None]
    sizes = right.sum(dim=1).tolist()
    n_found = [int(row[:size].sum()) for row, size in zip(right, sizes, strict=True)]
    precision = data.average_precision.double()[asked].tolist()
    return list(map(Retrieved, rows, precision, order[:, :k].tolist(), sizes, n_found))


def best_median_worst(
    ascending: list[int],
    descending: list[int],
    choose: Callable[[list[int], int], list[int]],
    each: int,
) -> dict[str, list[int]]:
    """Return up to ``each`` of the best, of the median and of the worst, none of them twice.

    ``choose`` takes some from candidates in order of preference. All are listed from best to worst,
    but the worst, which come first.
    """
    centre = (len(ascending) - 1) / 2
    outward = sorted(range(len(ascending)), key=lambda place: abs(place - centre))
    median = [ascending[place] for place in outward]
    each = min(each, -(-len(ascending) // 3))
    taken: set[int] = set()
    chosen = {}
    for name, rows in {"best": descending, "worst": ascending, "median": median}.items():
        chosen[name] = choose([row for row in rows if row not in taken], each)
        taken.update(chosen[name])
    chosen["median"].sort(key=ascending.index, reverse=True)
    return {name: chosen[name] for name in ("best", "median", "worst")}


def neighbours_of(
    embeds: Tensor, labels: Tensor, rows: Tensor, k: int, queries: Tensor | None = None
) -> Tensor:
    """Return (Q, min(k, M)) int64: the images nearest to a few queries by euclidean distance.

    M is N - 1, or with separate ``queries`` (N,) the number of other images. Equal distances are
    ordered as in ``metrics.search``, and the query itself is left out by its row.
    """
    # |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2), the sum that Gallery ranks by
    scores = torch.addmm(-embeds.square().sum(dim=1) / 2, embeds[rows], embeds.T)  # (Q, N)
    scores.scatter_(1, rows[:, None], -torch.inf)
    if queries is not None:
        scores[:, queries] = -torch.inf
    n_found = len(embeds) - (1 if queries is None else int(queries.sum()))
    return ranked(scores, labels[rows][:, None] == labels)[:, : min(k, n_found)]


def ranked(scores: Tensor, right: Tensor) -> Tensor:
    """Return (Q, N) int64, images by descending ``scores`` (Q, N); of equal ones the wrong first.

    ``right`` (Q, N) says which images are of the query's class.
    """
    wrong_first = right.sort(dim=1, stable=True).indices
    order = scores.gather(1, wrong_first).argsort(dim=1, descending=True, stable=True)
    return wrong_first.gather(1, order)


def _of_different_classes(rows: list[int], labels: Tensor, n: int) -> list[int]:
    """Return the first ``n`` rows of different classes, then other rows if classes are too few."""
    first: dict[int, int] = {}
    for row, label in zip(rows, labels[rows].tolist(), strict=True):
        first.setdefault(label, row)
    chosen = list(first.values())[:n]
    return [*chosen, *(row for row in rows if row not in chosen)][:n]


class ImageMap(NamedTuple):
    """M of the images in two dimensions."""

    rows: Tensor  # (M,) int64, ascending
    points: Tensor  # (M, 2) float32 in [0, 1]
    method: str  # "t-SNE" or "PCA"


def image_map(data: ReportData, limit: int = MAP_IMAGES) -> ImageMap:
    """Return a 2-D map of the images of whole classes, at most ``limit`` of them.

    t-SNE (van der Maaten and Hinton, JMLR 2008) of the unit embeddings, started from their
    principal components; the principal components themselves if there are too few images.
    """
    n_classes = len(data.class_names)
    ranks = torch.empty(n_classes, dtype=torch.int64)
    ranks[torch.randperm(n_classes, generator=data.generator("map"))] = torch.arange(n_classes)
    rows = ranks[data.labels].argsort(stable=True)[:limit].sort().values
    embeds = F.normalize(data.after[rows].float(), dim=1)
    points, method = _principal(embeds), "PCA"
    spread = points.std(dim=0, correction=0)[0]
    if len(rows) > PERPLEXITY * 3 and spread > 1e-6:
        from sklearn.manifold import TSNE

        start = (points / spread * 1e-4).numpy()  # the scale of scikit-learn's own start
        tsne = TSNE(perplexity=PERPLEXITY, init=start, random_state=0)
        points, method = torch.from_numpy(tsne.fit_transform(embeds.numpy())), "t-SNE"
    points = points - points.amin(dim=0)
    return ImageMap(rows, points / points.amax().clamp(min=1e-12), method)


def _principal(embeds: Tensor) -> Tensor:
    """Return the (N, 2) first principal components; the largest entry of an axis is positive."""
    centred = embeds - embeds.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # (<= 2, D)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    points = centred @ (axes * largest.sign()).T
    return F.pad(points, (0, 2 - points.shape[1]))
