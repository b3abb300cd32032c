"""The classes of a report: similarities, the pairs that training moved, scores."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import metrics
from evaluation.report_data import ReportData

N_PAIRS = 12  # pulled together, and as many pulled apart
MATRIX_CLASSES = 150  # more would be less than two pixels each
PAIR_CLASSES = 1000  # half a million pairs


class Similarities(NamedTuple):
    """Cosines of M classes, all matrices in the order of one clustering."""

    classes: Tensor  # (M,) int64
    matrices: dict[str, Tensor]  # "words", "before", "after", as far as available; each (M, M)
    n_classes: int  # that M were drawn from
    ordered_by: str  # the matrix whose clustering gives the order


def similarities(data: ReportData, limit: int = MATRIX_CLASSES) -> Similarities:
    """Return the similarities of classes in words and in images, ordered by clustering."""
    classes = data.draw_classes(limit, "matrices")
    matrices = _cosines(data, classes)
    ordered_by = "words" if "words" in matrices else "after"
    order = cluster_order(matrices[ordered_by])
    return Similarities(
        classes[order],
        {name: matrix[order][:, order] for name, matrix in matrices.items()},
        len(data.classes),
        ordered_by,
    )


def cluster_order(sims: Tensor) -> Tensor:
    """Return the (M,) int64 order of leaves of average-linkage clustering by 1 - cosine.

    Subtrees are flipped to make neighbouring leaves as similar as possible (Bar-Joseph et al., Fast
    optimal leaf ordering for hierarchical clustering, Bioinformatics 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(sims) < 3:
        return torch.arange(len(sims))
    above = np.triu_indices(len(sims), 1)
    distances = np.maximum(1 - sims.double().numpy()[above], 0)
    tree = linkage(distances, method="average", optimal_ordering=True)
    return torch.from_numpy(leaves_list(tree).astype(np.int64))


class Pair(NamedTuple):
    """Two classes, their similarities, and how training changed them."""

    classes: tuple[int, int]
    before: float  # cosine of the mean embeddings of the classes
    after: float
    words: float | None  # cosine of their words
    change: float  # in standard deviations among pairs, see ``pulled_pairs``


class Pulled(NamedTuple):
    """The pairs of classes that training moved most.

    With words, those come first that moved as their words would have it: of pairs that were pulled
    together those of similar words, of pairs that were pulled apart those of different ones.
    """

    together: list[Pair]
    apart: list[Pair]
    agreement: tuple[float, float] | None  # Spearman with the words before and after, in [-1, 1]
    n_classes: int  # compared


def pulled_pairs(data: ReportData, n: int = N_PAIRS, limit: int = PAIR_CLASSES) -> Pulled | None:
    """Return the pairs that training moved most; None without ``before`` or two classes.

    Training spreads all classes, so each cosine is compared with the other pairs of its time,
    z = (cos - mean) / std: the change is z_after - z_before, positive for a pair that gained.
    """
    classes = data.draw_classes(limit, "pairs")
    if data.before is None or len(classes) < 2:
        return None
    i, j = torch.triu_indices(len(classes), len(classes), offset=1)
    sims = {name: matrix[i, j] for name, matrix in _cosines(data, classes).items()}
    words = sims.get("words")
    change = _standardised(sims["after"]) - _standardised(sims["before"])  # (P,)
    order = change.argsort(descending=True, stable=True)

    def pair(place: int) -> Pair:
        before, after = (float(sims[name][place]) for name in ("before", "after"))
        named = None if words is None else float(words[place])
        ends = int(classes[i[place]]), int(classes[j[place]])
        return Pair(ends, before, after, named, float(change[place]))

    together = [pair(place) for place in order[:n].tolist() if change[place] > 0]
    apart = [pair(place) for place in order.flip(0)[:n].tolist() if change[place] < 0]
    if words is not None:
        together.sort(key=lambda pair: -(pair.words or 0))
        apart.sort(key=lambda pair: pair.words or 0)
    agreement = None
    if words is not None and len(classes) > 2:
        before, after = (rank_correlation(words, sims[name]) for name in ("before", "after"))
        agreement = (before, after)
    return Pulled(together, apart, agreement, len(classes))


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rho in [-1, 1]; 0 for a constant vector."""
    from scipy.stats import spearmanr

    if any(bool((values == values[0]).all()) for values in (first, second)):
        return 0.0
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def _cosines(data: ReportData, classes: Tensor) -> dict[str, Tensor]:
    """Return (M, M) cosines of classes by words and by mean embeddings before and after."""
    vectors = {}
    if data.class_words is not None:
        vectors["words"] = F.normalize(data.class_words[classes].float(), dim=1)
    if data.before is not None:
        vectors["before"] = data.class_means(data.before, classes)
    vectors["after"] = data.class_means(data.after, classes)
    return {name: rows @ rows.T for name, rows in vectors.items()}


def _standardised(values: Tensor) -> Tensor:
    values = values.double()
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-12)


class ClassScores(NamedTuple):
    """One class as a row of a table; scores are fractions, NaN if no query counts."""

    label: int
    n_images: int
    recall: float
    average_precision: float
    nearest: int  # the class of the most similar mean embedding; -1 if there is no other
    cosine: float  # of the two means


def class_scores(data: ReportData) -> list[ClassScores]:
    """Return the classes that have an image, lowest average precision first, NaN last."""
    counts = data.labels.bincount()
    scores = {"recall@1": data.recall.double(), "mAP@R": data.average_precision.double()}
    recall, precision = metrics.per_class(scores, data.labels).values()
    cosines, places = _nearest_other(data.class_means(data.after, data.classes))
    nearest = data.classes[places].tolist() if len(data.classes) > 1 else [-1]
    columns = (data.classes, *(part[data.classes] for part in (counts, recall, precision)))
    rows = zip(*(part.tolist() for part in columns), nearest, cosines.tolist(), strict=True)
    table = [ClassScores(*row) for row in rows]
    return sorted(table, key=lambda row: (np.nan_to_num(row.average_precision, nan=2.0), row.label))


def _nearest_other(means: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Return the highest cosine with another row, and that row; NaN and 0 if there is only one."""
    if len(means) < 2:
        return torch.full((len(means),), torch.nan), torch.zeros(len(means), dtype=torch.int64)
    best = []
    for start in range(0, len(means), block):
        sims = means[start : start + block] @ means.T
        sims.diagonal(start).fill_(-torch.inf)
        best.append(sims.max(dim=1))
    cosines, places = (torch.cat(parts) for parts in zip(*best, strict=True))
    return cosines, places
