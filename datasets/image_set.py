"""`ImageSet`: which images there are, the class of each, and the words that name them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of C classes. A *row* is an image's place in ``paths``.

    Raises:
        ValueError: the lengths do not agree, or the labels are not exactly 0..C-1.
    """

    name: str  # "emoji.train"
    paths: tuple[Path, ...]  # (N,)
    labels: NDArray[np.int64]  # (N,), in [0, C); every class has an image
    class_names: tuple[str, ...]  # (C,) words, such as "Black footed Albatross"
    class_groups: tuple[str, ...] = ()  # (C,) the class above each class; empty: there are none
    captions: tuple[str, ...] = ()  # (N,) a sentence for each image; empty: there are none

    def __post_init__(self) -> None:
        present = np.unique(self.labels)
        if not np.array_equal(present, np.arange(self.n_classes)):
            raise ValueError(
                f"{self.name}: labels must be 0..{self.n_classes - 1}, each at least once; "
                f"found {len(present)} distinct ones"
            )
        for field, length, wanted in (
            ("labels", len(self.labels), len(self.paths)),
            ("class_groups", len(self.class_groups) or self.n_classes, self.n_classes),
            ("captions", len(self.captions) or len(self.paths), len(self.paths)),
        ):
            if length != wanted:
                raise ValueError(f"{self.name}: {field} has {length} entries, expected {wanted}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def rows_by_class(self) -> tuple[NDArray[np.int64], ...]:
        """The rows of each class, in ascending order; C arrays, none of them empty."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=self.n_classes))
        return tuple(np.split(order, ends[:-1]))

    def subset(self, rows: Sequence[int] | NDArray[np.int64], name: str) -> "ImageSet":
        """The images of ``rows``, in that order; only their classes, numbered anew from 0."""
        rows = np.asarray(rows, dtype=np.int64)
        kept, labels = np.unique(self.labels[rows], return_inverse=True)
        return ImageSet(
            name=name,
            paths=tuple(self.paths[row] for row in rows),
            labels=labels.astype(np.int64),
            class_names=tuple(self.class_names[label] for label in kept),
            class_groups=tuple(self.class_groups[label] for label in kept)
            if self.class_groups
            else (),
            captions=tuple(self.captions[row] for row in rows) if self.captions else (),
        )

    def of_classes(self, classes: Sequence[int] | NDArray[np.int64], name: str) -> "ImageSet":
        """All images of ``classes``."""
        return self.subset(np.flatnonzero(np.isin(self.labels, classes)), name)
