"""A few images of each set, enough for every score: what a dry run evaluates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.downstream import Downstream
from datasets.image_set import Images, ImageSet

BATCHES = 2  # of each set that is evaluated
FEWEST = 96  # images that classifiers need for five classes of shots and queries
PER_CLASS = 12  # of them


def few(images: ImageSet, most: int) -> ImageSet:
    """Return at most ``most`` images, so that queries find an image of their class."""
    labels, queries = images.labels, images.queries
    if queries is None:
        [rows] = few_rows([labels], most, each=2)
    else:
        parts = [np.flatnonzero(queries), np.flatnonzero(~queries)]
        chosen = few_rows([labels[part] for part in parts], most // 2, each=1)
        rows = np.concatenate([part[places] for part, places in zip(parts, chosen, strict=True)])
    return images.subset(rows, images.name)


def few_of_each(dataset: Downstream, most: int) -> dict[str, Any]:
    """Return train, val and test cut to ``most`` images, or as many as few-shot needs."""
    sets = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    present = {name: images for name, images in sets.items() if images is not None}
    labels = [np.array([s.label(row) for row in range(len(s))]) for s in present.values()]
    chosen = few_rows(labels, max(most, FEWEST), each=PER_CLASS)
    pairs = zip(present.items(), chosen, strict=True)
    return {name: Subset(images, rows) for (name, images), rows in pairs}


def few_rows(sets: Sequence[NDArray[np.int64]], most: int, each: int) -> list[NDArray[np.int64]]:
    """Return at most ``most`` ascending rows of each set of labels, enough for every score.

    Classes are taken in turn, those with most images first, and ``each`` images of a class per
    turn: two let every query find another image of its class.
    """
    sizes = np.bincount(np.concatenate(sets))
    turn = np.empty_like(sizes)
    turn[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    chosen = []
    for labels in sets:
        by_class = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=len(sizes))
        place = np.empty_like(labels)  # of an image among those of its class
        place[by_class] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
        order = np.lexsort((turn[labels], place // each))
        chosen.append(np.sort(order[:most]))
    return chosen


class Subset:
    """Some rows of a set of images, as a set (``datasets.image_set.Images``)."""

    def __init__(self, images: Images, rows: NDArray[np.int64]) -> None:
        self.images = images
        self.rows = rows.tolist()
        self.name = images.name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Any:
        return self.images.read(self.rows[row])

    def label(self, row: int) -> int:
        return self.images.label(self.rows[row])

    def caption(self, row: int) -> str | None:
        return self.images.caption(self.rows[row])
