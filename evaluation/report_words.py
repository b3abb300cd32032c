"""The names that a report shows, with the images that they find by a map from words to images."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import metrics
from evaluation.report_data import ReportData
from evaluation.report_retrieval import best_median_worst, ranked
from evaluation.word_search import DistinctNames

N_NAMES = 4  # each of the best, of the median and of the worst
N_FOUND = 8  # images
N_MAGNETS = 6  # classes that come first for other names
N_ASIDE = 6  # names listed for each of them
BLOCK = 256  # names that are compared with all images at a time


class NameSearch(NamedTuple):
    """A name and what it finds. A class is that of its name; of one name, the first."""

    label: int
    average_precision: float
    first_hit: int  # rank of the nearest image of its class, from 1
    found: list[int]  # rows, nearest first
    right: list[bool]  # which of them are of its class


class Magnet(NamedTuple):
    """A class whose image comes first for other names than its own."""

    label: int
    names: list[int]  # their labels


class WordFinds(NamedTuple):
    n_names: int  # with an image
    searches: dict[str, list[NameSearch]]  # best, median, worst by average precision
    n_wrong: int  # names whose first image is wrong
    in_group: int | None  # of these, names whose first image is of their group; None: no groups
    in_group_by_chance: float  # number expected if any wrong image came first
    magnets: list[Magnet]  # of most names first; of one name alone, left out


class Names:
    """The U names of a set, compared with its N images."""

    def __init__(self, data: ReportData) -> None:
        assert data.word_queries is not None and data.word_gallery is not None
        names = DistinctNames.among(data.class_names)
        self.first = names.first  # (U,), the first class of each
        self.queries = F.normalize(data.word_queries[names.first].float(), dim=1)  # (U, D)
        self.images = F.normalize(data.word_gallery.float(), dim=1)  # (N, D)
        self.labels = names.of[data.labels]  # (N,), the number of each image's name
        asked = metrics.Queries(self.queries, torch.arange(len(self.queries)))
        gallery = metrics.Gallery(self.images, self.labels, queries=asked)
        scores = metrics.per_query(["c_mAP", "c_recall@1"], gallery)
        self.precision = scores["c_mAP"]  # (U,), NaN for a name without an image
        self.wrong = (scores["c_recall@1"] == 0).nonzero()[:, 0]  # (W,), first image is wrong

    def search(self, number: int, k: int) -> NameSearch:
        """Return what a name finds."""
        right = self.labels == number
        order = ranked((self.images @ self.queries[number])[None], right[None])[0]
        hits = right[order]
        return NameSearch(
            label=int(self.first[number]),
            average_precision=float(self.precision[number]),
            first_hit=1 + int(hits.int().argmax()),
            found=order[:k].tolist(),
            right=hits[:k].tolist(),
        )

    def first_wrong(self) -> Tensor:
        """Return (W,) int64: the image that comes first for each name of ``wrong``."""
        nearest = [torch.empty(0, dtype=torch.int64)]
        for numbers in self.wrong.split(BLOCK):
            own = self.labels == numbers[:, None]
            cosines = self.queries[numbers] @ self.images.T
            nearest.append(cosines.masked_fill(own, -torch.inf).argmax(dim=1))
        return torch.cat(nearest)


def word_finds(data: ReportData, each: int = N_NAMES, k: int = N_FOUND) -> WordFinds | None:
    """Return what the names of the classes find, None without a search by words.

    Names of equal average precision are spread over groups, then ordered by the seed. A class
    without an image has no name to search by, and classes of one name are one class.
    """
    if data.word_queries is None:
        return None
    names = Names(data)
    searches = {
        place: [names.search(number, k) for number in numbers]
        for place, numbers in _chosen(data, names, each).items()
    }
    asking = names.first[names.wrong].tolist()
    found = names.first[names.labels[names.first_wrong()]].tolist()
    instead = list(zip(asking, found, strict=True))
    magnets = [
        Magnet(label, [name for name, other in instead if other == label])
        for label, count in Counter(found).most_common(N_MAGNETS)
        if count > 1
    ]
    in_group, by_chance = None, 0.0
    if data.class_groups:
        in_group = sum(data.class_groups[a] == data.class_groups[b] for a, b in instead)
        by_chance = _group_by_chance(data, names)
    n_names = int((~names.precision.isnan()).sum())
    return WordFinds(n_names, searches, len(instead), in_group, by_chance, magnets)


def names_at(data: ReportData, percentiles: Sequence[float], k: int = N_FOUND) -> list[NameSearch]:
    """Return the names at these percentiles of average precision, from 0 to 100.

    Of equal names the first in the alphabet counts as the lower.
    """
    names = Names(data)
    numbers = (~names.precision.isnan()).nonzero()[:, 0].tolist()
    numbers.sort(key=lambda n: (float(names.precision[n]), data.class_names[int(names.first[n])]))
    places = [round(percentile / 100 * (len(numbers) - 1)) for percentile in percentiles]
    return [names.search(numbers[place], k) for place in places]


def _chosen(data: ReportData, names: Names, each: int) -> dict[str, list[int]]:
    """Return the numbers of the names to show."""
    precision = names.precision.tolist()
    order = torch.randperm(len(precision), generator=data.generator("names")).tolist()
    numbers = [number for number in order if not math.isnan(precision[number])]
    groups = data.class_groups or [""] * len(data.class_names)
    seen: Counter[tuple[float, str]] = Counter()
    turns = {}  # how many names of the same precision and group come before
    for number in numbers:
        alike = precision[number], groups[int(names.first[number])]
        turns[number] = seen[alike]
        seen[alike] += 1
    ascending = sorted(numbers, key=lambda number: (precision[number], turns[number]))
    descending = sorted(numbers, key=lambda number: (-precision[number], turns[number]))
    return best_median_worst(ascending, descending, lambda names, n: names[:n], each)


def _group_by_chance(data: ReportData, names: Names) -> float:
    """Return for how many of the wrong names any image of another class is of their group."""
    groups = [data.class_groups[label] for label in names.first.tolist()]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of = torch.tensor([numbers[group] for group in groups])  # (U,)
    own = names.labels.bincount(minlength=len(of)).double()  # images of each name
    in_group = of[names.labels].bincount(minlength=len(numbers)).double()[of]
    shares = (in_group - own) / (len(names.labels) - own)
    return float(shares[names.wrong].sum())
