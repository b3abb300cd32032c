"""What a report shows of an embedded image set: the choices and sums that pictures and page share.

Everything here is deterministic. Where a set is larger than a picture can hold, classes are drawn
by the seed, and what is returned says how many there were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.seeding import derive

N_QUERIES = 6  # of the best, of the median and of the worst
N_NEIGHBOURS = 8
N_PAIRS = 12  # pulled together, and as many pulled apart
MATRIX_CLASSES = 150  # more would be less than two pixels each
PAIR_CLASSES = 1000  # half a million pairs
MAP_IMAGES = 1500
FEWEST_FOR_TSNE = 30  # its perplexity: with fewer images there is no neighbourhood to keep


@dataclass(frozen=True, eq=False)
class Exhibit:
    """N embedded images of C classes with their scores as queries.

    Args:
        name: of the image set, such as "emoji.test".
        paths: N image files.
        labels: (N,) int64 in [0, C).
        class_names: C words.
        after: (N, D) float32 on the CPU, the embeddings that are shown.
        recall: (N,) recall@1 of each query, NaN where an image is alone in its class or no query.
        average_precision: (N,) mAP@R of each query, NaN likewise.
        before: (N, D') embeddings of the untrained embedder; None leaves out what compares the two.
        class_groups: C names of the group that each class belongs to; empty: there are none.
        class_words: (C, Dw) embedded words of the classes; None leaves out what reads them.
        seed: of every draw.
        queries: (N,) bool, where queries are a set of their own: these ask, and only the others are
            found. None: every image asks, and finds the others.

    Raises:
        ValueError: there is no image, lengths do not agree, or a label has no class name.
    """

    name: str
    paths: Sequence[Path]
    labels: Tensor
    class_names: Sequence[str]
    after: Tensor
    recall: Tensor
    average_precision: Tensor
    before: Tensor | None = None
    class_groups: Sequence[str] = ()
    class_words: Tensor | None = None
    seed: int = 0
    queries: Tensor | None = None

    def __post_init__(self) -> None:
        n, n_classes = len(self.paths), len(self.class_names)
        if not n:
            raise ValueError(f"{self.name} has no images to show")
        for field in ("labels", "after", "recall", "average_precision", "before", "queries"):
            value = getattr(self, field)
            if value is not None and len(value) != n:
                raise ValueError(f"{self.name}: {field} has {len(value)} rows for {n} images")
        words = None if self.class_words is None else len(self.class_words)
        for field, length in (
            ("class_groups", len(self.class_groups) or None),
            ("class_words", words),
        ):
            if length not in (None, n_classes):
                raise ValueError(f"{self.name}: {field} has {length} rows for {n_classes} classes")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < n_classes:
            raise ValueError(f"{self.name}: labels must be in [0, {n_classes})")

    @cached_property
    def classes(self) -> Tensor:
        """(M,) int64, ascending: the classes that have an image."""
        return self.labels.unique()

    def class_of(self, row: int) -> str:
        """What the class of an image is called."""
        return self.class_names[int(self.labels[row])]

    def class_means(self, embeds: Tensor, classes: Tensor) -> Tensor:
        """(M, D) unit rows: the mean unit embedding of the images of each class."""
        sums = embeds.new_zeros(len(self.class_names), embeds.shape[1])
        sums.index_add_(0, self.labels, F.normalize(embeds, dim=1))
        return F.normalize(sums[classes], dim=1)

    def draw_classes(self, limit: int, purpose: str) -> Tensor:
        """(<= limit,) int64, ascending: classes that have an image, all of them if few enough."""
        order = torch.randperm(len(self.classes), generator=self.generator(purpose))
        return self.classes[order[:limit].sort().values]

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, "report", purpose))


# --------------------------------------------------------------------------------------------------
# Retrieval
# --------------------------------------------------------------------------------------------------
class Retrieved(NamedTuple):
    """A query and what it finds."""

    row: int
    average_precision: float
    neighbours: list[int]  # rows, nearest first, without the query


def retrievals(
    exhibit: Exhibit, each: int = N_QUERIES, k: int = N_NEIGHBOURS
) -> dict[str, list[Retrieved]]:
    """The best, median and worst queries by average precision (mAP@R) with their neighbours.

    Queries are of different classes as long as there are enough of them, and none is shown twice.
    Equal scores are put in an order that the seed draws: the first rows of a set are often of one
    kind. Images alone in their class are no queries.
    """
    scores = exhibit.average_precision.double()
    shuffled = torch.randperm(len(scores), generator=exhibit.generator("queries"))
    shuffled = shuffled[~scores[shuffled].isnan()]
    ascending = shuffled[scores[shuffled].argsort(stable=True)].tolist()
    middle = (len(ascending) - 1) / 2
    outward = sorted(range(len(ascending)), key=lambda place: abs(place - middle))
    candidates = {
        "best": ascending[::-1],
        "worst": ascending,
        "median": [ascending[place] for place in outward],
    }
    each = min(each, -(-len(ascending) // 3))
    taken: set[int] = set()
    chosen = {}
    for name, rows in candidates.items():
        rows = [row for row in rows if row not in taken]
        chosen[name] = _of_different_classes(rows, exhibit.labels, each)
        taken.update(chosen[name])
    chosen["median"].sort(key=ascending.index, reverse=True)

    found = {}
    for name in ("best", "median", "worst"):
        rows = chosen[name]
        neighbours = nearest(
            exhibit.after, exhibit.labels, torch.tensor(rows).long(), k, exhibit.queries
        )
        found[name] = [
            Retrieved(row, float(scores[row]), near)
            for row, near in zip(rows, neighbours.tolist(), strict=True)
        ]
    return found


def nearest(
    embeds: Tensor, labels: Tensor, rows: Tensor, k: int, queries: Tensor | None = None
) -> Tensor:
    """(Q, min(k, M)) int64: the nearest of M images of a few queries, by euclidean distance.

    M is N - 1, or the number of images that are none of ``queries`` (N,), where these are given.

    Equal distances are broken as in ``metrics.Gallery``: images of other classes come first, then
    the lower row, and the query itself is left out by its row.
    """
    # |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2), the sum that Gallery ranks by
    scores = torch.addmm(-embeds.square().sum(dim=1) / 2, embeds[rows], embeds.T)  # (Q, N)
    scores.scatter_(1, rows[:, None], -torch.inf)
    if queries is not None:
        scores[:, queries] = -torch.inf
    others_first = (labels[rows][:, None] == labels).sort(dim=1, stable=True).indices
    order = scores.gather(1, others_first).argsort(dim=1, descending=True, stable=True)
    n_found = len(embeds) - (1 if queries is None else int(queries.sum()))
    return others_first.gather(1, order)[:, : min(k, n_found)]


def _of_different_classes(rows: list[int], labels: Tensor, n: int) -> list[int]:
    """The first ``n`` rows, later ones of a class only where there are not enough classes."""
    seen: set[int] = set()
    first: list[int] = []
    later: list[int] = []
    for row in rows:
        label = int(labels[row])
        (later if label in seen else first).append(row)
        seen.add(label)
        if len(first) == n:
            return first
    return [*first, *later][:n]


# --------------------------------------------------------------------------------------------------
# Classes beside classes
# --------------------------------------------------------------------------------------------------
class Similarities(NamedTuple):
    """Cosines of M classes in one common order, that of a clustering."""

    classes: Tensor  # (M,) int64
    matrices: dict[str, Tensor]  # "words", "before", "after", each (M, M); those that there are
    n_classes: int  # that M were drawn from
    ordered_by: str  # the matrix whose clustering gives the order


def similarities(exhibit: Exhibit, limit: int = MATRIX_CLASSES) -> Similarities:
    """How alike classes are in words and in images, ordered by average-linkage clustering."""
    classes = exhibit.draw_classes(limit, "matrices")
    matrices = _cosines(exhibit, classes)
    ordered_by = next(iter(matrices)) if "words" in matrices else "after"
    order = cluster_order(matrices[ordered_by])
    return Similarities(
        classes[order],
        {name: matrix[order][:, order] for name, matrix in matrices.items()},
        len(exhibit.classes),
        ordered_by,
    )


def cluster_order(sims: Tensor) -> Tensor:
    """(M,) int64: the order of leaves of average-linkage clustering by 1 - cosine.

    Subtrees are flipped so that neighbouring leaves are as alike as they can be (Bar-Joseph et al.,
    Fast optimal leaf ordering for hierarchical clustering, Bioinformatics 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(sims) < 3:
        return torch.arange(len(sims))
    above = np.triu_indices(len(sims), 1)
    distances = np.maximum(1 - sims.double().numpy()[above], 0)
    tree = linkage(distances, method="average", optimal_ordering=True)
    return torch.from_numpy(leaves_list(tree).astype(np.int64))


class Pair(NamedTuple):
    """Two classes, how alike they are, and what training changed."""

    classes: tuple[int, int]
    before: float  # cosine of the mean embeddings of the classes
    after: float
    words: float | None  # cosine of their words
    change: float  # in standard deviations among pairs, see ``pulled_pairs``


class Pulled(NamedTuple):
    """What training did to the similarities of classes."""

    together: list[Pair]
    apart: list[Pair]
    agreement: tuple[float, float] | None  # Spearman with the words before and after, in [-1, 1]
    n_classes: int  # compared, of all that have an image


def pulled_pairs(exhibit: Exhibit, n: int = N_PAIRS, limit: int = PAIR_CLASSES) -> Pulled | None:
    """The pairs of classes that training has moved most; None without ``before`` or two classes.

    Training spreads all classes, which would make nearly every pair one that was pulled apart. So
    each cosine is first measured against the other pairs of its time, z = (cos - mean) / std, and
    the change is z_after - z_before: positive where a pair has gained on the others.
    """
    classes = exhibit.draw_classes(limit, "pairs")
    if exhibit.before is None or len(classes) < 2:
        return None
    i, j = torch.triu_indices(len(classes), len(classes), offset=1)
    sims = {name: matrix[i, j] for name, matrix in _cosines(exhibit, classes).items()}
    words = sims.get("words")
    change = _standardised(sims["after"]) - _standardised(sims["before"])  # (P,)
    order = change.argsort(descending=True, stable=True)

    def pair(place: int) -> Pair:
        return Pair(
            (int(classes[i[place]]), int(classes[j[place]])),
            float(sims["before"][place]),
            float(sims["after"][place]),
            None if words is None else float(words[place]),
            float(change[place]),
        )

    together = [pair(place) for place in order[:n].tolist() if change[place] > 0]
    apart = [pair(place) for place in order.flip(0)[:n].tolist() if change[place] < 0]
    agreement = None
    if words is not None and len(classes) > 2:
        agreement = (
            rank_correlation(words, sims["before"]),
            rank_correlation(words, sims["after"]),
        )
    return Pulled(together, apart, agreement, len(classes))


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rho in [-1, 1]; equal values share a rank, and a constant vector gives 0."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(first.numpy()), rankdata(second.numpy())])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1)).prod()
    return float(ranks.prod(axis=0).sum() / norms) if norms else 0.0


def _cosines(exhibit: Exhibit, classes: Tensor) -> dict[str, Tensor]:
    """(M, M) cosines of classes by their words and by their mean embeddings before and after."""
    vectors = {}
    if exhibit.class_words is not None:
        vectors["words"] = F.normalize(exhibit.class_words[classes].float(), dim=1)
    if exhibit.before is not None:
        vectors["before"] = exhibit.class_means(exhibit.before, classes)
    vectors["after"] = exhibit.class_means(exhibit.after, classes)
    return {name: rows @ rows.T for name, rows in vectors.items()}


def _standardised(values: Tensor) -> Tensor:
    values = values.double()
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-12)


# --------------------------------------------------------------------------------------------------
# Map
# --------------------------------------------------------------------------------------------------
class ImageMap(NamedTuple):
    """M of the images in two dimensions."""

    rows: Tensor  # (M,) int64, ascending
    points: Tensor  # (M, 2) float32 in [0, 1]
    method: str  # "t-SNE" or "PCA"


def image_map(exhibit: Exhibit, limit: int = MAP_IMAGES) -> ImageMap:
    """A 2-D map of images of whole classes, as many as there is room for.

    t-SNE (van der Maaten and Hinton, JMLR 2008) of the unit embeddings, perplexity 30, started from
    their principal components; the principal components themselves where images are too few.
    """
    ranks = torch.empty(len(exhibit.class_names), dtype=torch.int64)
    n_classes = len(exhibit.class_names)
    ranks[torch.randperm(n_classes, generator=exhibit.generator("map"))] = torch.arange(n_classes)
    rows = ranks[exhibit.labels].argsort(stable=True)[:limit].sort().values
    embeds = F.normalize(exhibit.after[rows].float(), dim=1)
    points, method = _principal(embeds), "PCA"
    spread = points.std(dim=0, correction=0)[0]
    if len(rows) > FEWEST_FOR_TSNE * 3 and spread > 1e-6:
        from sklearn.manifold import TSNE

        start = (points / spread * 1e-4).numpy()  # the scale that scikit-learn's own start has
        tsne = TSNE(perplexity=FEWEST_FOR_TSNE, init=start, random_state=0)
        points, method = torch.from_numpy(tsne.fit_transform(embeds.numpy())), "t-SNE"
    points = points - points.amin(dim=0)
    return ImageMap(rows, points / points.amax().clamp(min=1e-12), method)


def _principal(embeds: Tensor) -> Tensor:
    """(N, 2) first two principal components; the largest entry of each axis is positive."""
    centred = embeds - embeds.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # (<= 2, D)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    points = centred @ (axes * largest.sign()).T
    return F.pad(points, (0, 2 - points.shape[1]))


# --------------------------------------------------------------------------------------------------
# Class by class
# --------------------------------------------------------------------------------------------------
class ClassScores(NamedTuple):
    """One class as a row of a table; scores are fractions, NaN where no query counts."""

    label: int
    n_images: int
    recall: float
    average_precision: float
    nearest: int  # the class of the most similar mean embedding; -1 if there is no other
    cosine: float  # of the two means


def per_class(exhibit: Exhibit) -> list[ClassScores]:
    """The classes that have an image, lowest average precision first, NaN last."""
    n_classes = len(exhibit.class_names)
    counts = exhibit.labels.bincount(minlength=n_classes)
    recall, precision = (
        _class_averages(values, exhibit.labels, n_classes)
        for values in (exhibit.recall, exhibit.average_precision)
    )
    means = exhibit.class_means(exhibit.after, exhibit.classes)
    cosines, places = _nearest_other(means)
    table = [
        ClassScores(
            label,
            int(counts[label]),
            float(recall[label]),
            float(precision[label]),
            int(exhibit.classes[places[row]]) if len(means) > 1 else -1,
            float(cosines[row]),
        )
        for row, label in enumerate(exhibit.classes.tolist())
    ]
    return sorted(table, key=lambda row: (np.nan_to_num(row.average_precision, nan=2.0), row.label))


def _class_averages(values: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(C,) float64 mean of the values of each class that are not NaN."""
    found = ~values.isnan()
    sums = torch.zeros(n_classes, dtype=torch.float64)
    sums.index_add_(0, labels[found], values[found].double())
    return sums / labels[found].bincount(minlength=n_classes)


def _nearest_other(means: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """(M,) highest cosine with another row, and which row that is; NaN and 0 if there is none."""
    if len(means) < 2:
        return torch.full((len(means),), torch.nan), torch.zeros(len(means), dtype=torch.int64)
    cosines, places = [], []
    for start in range(0, len(means), block):
        sims = means[start : start + block] @ means.T
        sims.diagonal(start).fill_(-torch.inf)
        best = sims.max(dim=1)
        cosines.append(best.values)
        places.append(best.indices)
    return torch.cat(cosines), torch.cat(places)
