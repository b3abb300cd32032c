"""Which images there are, the class of each, and the words that name them.

`Images` is what a loader asks of a set; `ImageSet` is one of labelled files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.reading import Decoded, Picture, as_image, as_pixels, open_image, read_image

if TYPE_CHECKING:
    from datasets.image_cache import Store


class Images(Protocol):
    """N images by row, wherever they lie: in files, in tar shards, in another library's dataset."""

    @property
    def name(self) -> str:
        """Such as "emoji.train"."""

    def __len__(self) -> int:
        """N."""

    def read(self, row: int) -> Image.Image:
        """The image in RGB. Raises OSError, which names it, where it cannot be read."""

    def label(self, row: int) -> int:
        """Its class, >= 0; where there are no classes, its row."""

    def caption(self, row: int) -> str | None:
        """What is said of it; None where nothing is."""


def picture(images: Images, row: int) -> Picture:
    """The image of a row, not decoded yet where the set can open it without.

    Such a set has a method ``picture(row)``; it, and the picture's ``pixels``, raise as ``read``.
    """
    opener = getattr(images, "picture", None)
    return Decoded(as_pixels(images.read(row))) if opener is None else opener(row)


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
    queries: NDArray[np.bool_] | None = None  # (N,) asks, or is the gallery; None: all do both
    store: "Store | None" = None  # of datasets.image_cache: where images are read from instead

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
            ("queries", len(self if self.queries is None else self.queries), len(self.paths)),
        ):
            if length != wanted:
                raise ValueError(f"{self.name}: {field} has {length} entries, expected {wanted}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def read(self, row: int) -> Image.Image:
        if self.store is not None:
            return as_image(self.store.picture(row).values)
        return read_image(self.paths[row])

    def picture(self, row: int) -> Picture:
        return open_image(self.paths[row]) if self.store is None else self.store.picture(row)

    def with_store(self, store: "Store | None") -> "ImageSet":
        """The same set, its images read from ``store``; None: from their files."""
        return replace(self, store=store)

    def label(self, row: int) -> int:
        return int(self.labels[row])

    def caption(self, row: int) -> str | None:
        return self.captions[row] if self.captions else None

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
            queries=None if self.queries is None else self.queries[rows],
            store=None if self.store is None else self.store.take(rows),
        )

    def of_classes(self, classes: Sequence[int] | NDArray[np.int64], name: str) -> "ImageSet":
        """All images of ``classes``."""
        return self.subset(np.flatnonzero(np.isin(self.labels, classes)), name)
