"""The names that a report shows, with the images that they find by a map from words to images."""

from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import metrics
from evaluation.report_data import ReportData
from evaluation.report_retrieval import best_median_worst, ranked
from evaluation.word_search import Names

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


def word_finds(data: ReportData, each: int = N_NAMES, k: int = N_FOUND) -> WordFinds | None:
    """Return what the names of the classes find, None without a search by words.

    Names of equal average precision are spread over groups, then ordered by the seed. A class
    without an image has no name to search by, and classes of one name are one class.
    """
    if data.word_queries is None or data.word_gallery is None:
        return None
    named = Names.of_classes(data.class_names)
    queries = F.normalize(data.word_queries[named.first].float(), dim=1)  # (U, D)
    images = F.normalize(data.word_gallery.float(), dim=1)  # (N, D)
    labels = named.of[data.labels]  # (N,), numbers of names

    asked = metrics.Queries(queries, torch.arange(len(queries)))
    scores = metrics.per_query(
        ["c_mAP", "c_recall@1"], metrics.Gallery(images, labels, queries=asked)
    )
    precision, recall = scores["c_mAP"], scores["c_recall@1"]

    def search(number: int) -> NameSearch:
        right = labels == number
        order = ranked((images @ queries[number])[None], right[None])[0]
        hits = right[order]
        return NameSearch(
            *(int(named.first[number]), float(precision[number]), 1 + int(hits.int().argmax())),
            *(order[:k].tolist(), hits[:k].tolist()),
        )

    chosen = _chosen(data, named, precision, each)
    searches = {name: [search(number) for number in numbers] for name, numbers in chosen.items()}

    wrong = (recall == 0).nonzero()[:, 0]  # (W,)
    first = _first_wrong(queries, images, labels, wrong)  # (W,), rows
    pairs = list(zip(named.first[wrong].tolist(), named.first[labels[first]].tolist(), strict=True))
    counts = Counter(found for _, found in pairs)
    magnets = [
        Magnet(found, [asking for asking, other in pairs if other == found])
        for found, count in counts.most_common(N_MAGNETS)
        if count > 1
    ]
    in_group, by_chance = None, 0.0
    if data.class_groups:
        in_group = sum(data.class_groups[a] == data.class_groups[b] for a, b in pairs)
        by_chance = _group_by_chance(data, named, labels, wrong)
    n_names = int((~precision.isnan()).sum())
    return WordFinds(n_names, searches, len(wrong), in_group, by_chance, magnets)


def meaning(metric: str) -> str:
    """Return in plain words which share a metric of search by words is."""
    kind, k = metric.rpartition("@")[0] or metric, metrics.parse(metric).k
    where = "first" if k == 1 else f"among the first {k}"
    return {
        "word_recall": f"names with a right image {where}",
        "word_mAP": "average precision of the names",
        "named": f"images with their own name {where}",
    }[kind.removeprefix("c_").removeprefix("e_")]


def _chosen(data: ReportData, named: Names, precision: Tensor, each: int) -> dict[str, list[int]]:
    """Return the numbers of the names to show."""
    order = torch.randperm(len(precision), generator=data.generator("names"))
    numbers = order[~precision[order].isnan()].tolist()
    groups = data.class_groups or [""] * len(data.class_names)
    seen: Counter[tuple[float, str]] = Counter()
    turns = {}  # how many of the same precision and group come before a name
    for number in numbers:
        alike = float(precision[number]), groups[int(named.first[number])]
        turns[number] = seen[alike]
        seen[alike] += 1
    ascending = sorted(numbers, key=lambda number: (float(precision[number]), turns[number]))
    descending = sorted(numbers, key=lambda number: (-float(precision[number]), turns[number]))
    return best_median_worst(ascending, descending, lambda names, n: names[:n], each)


def _first_wrong(queries: Tensor, images: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Return (W,) int64: the nearest image of another class to each of the names ``asked`` (W,)."""
    nearest = [torch.empty(0, dtype=torch.int64)]
    for numbers in asked.split(BLOCK):
        cosines = queries[numbers] @ images.T
        nearest.append(cosines.masked_fill(labels == numbers[:, None], -torch.inf).argmax(dim=1))
    return torch.cat(nearest)


def _group_by_chance(data: ReportData, named: Names, labels: Tensor, asked: Tensor) -> float:
    """Return for how many of the names ``asked`` any image of another class is of their group."""
    groups = [data.class_groups[label] for label in named.first.tolist()]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of = torch.tensor([numbers[group] for group in groups])  # (U,)
    own = labels.bincount(minlength=len(of)).double()  # images of each name
    mates = of[labels].bincount(minlength=len(numbers)).double()[of] - own
    return float((mates / (len(labels) - own))[asked].sum())
