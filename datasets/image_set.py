"""Labelled images and the words that name their classes (``ImageSet``)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.image_files import READING
from datasets.reading import (
    Decoded,
    LazyImage,
    Reader,
    as_image,
    as_pixels,
    open_image,
)

T = TypeVar("T")


class Images(Protocol):
    """N images by row: in files, in tar shards, or in another library's dataset."""

    @property
    def name(self) -> str:
        """Such as "emoji.train"."""

    def __len__(self) -> int:
        """N."""

    def read(self, row: int) -> Image.Image:
        """Return the image in RGB. Raises OSError, naming it, if it cannot be read."""

    def label(self, row: int) -> int:
        """Return its class, >= 0; its row if there are no classes."""

    def caption(self, row: int) -> str | None:
        """Return its caption, if it has one; several are lines of one text."""


def open_row(images: Images, row: int) -> LazyImage:
    """Open the image of a row; it is decoded at once if the set has no method ``open(row)``."""
    opener = getattr(images, "open", None)
    return Decoded(as_pixels(images.read(row))) if opener is None else opener(row)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of C classes. A *row* is an image's index in ``paths``.

    Raises ValueError if the lengths do not agree, or the labels are not exactly 0..C-1.
    """

    reading: ClassVar[int] = READING

    name: str  # "emoji.train"
    paths: tuple[Path, ...]  # (N,)
    labels: NDArray[np.int64]  # (N,), in [0, C); every class has an image
    class_names: tuple[str, ...]  # (C,) words, such as "Black footed Albatross"
    class_groups: tuple[str, ...] = ()  # (C,) the class above each class; may be empty
    class_descriptions: tuple[
        tuple[str, ...], ...
    ] = ()  # (C,) sentences, or () if no class has any
    class_tags: tuple[tuple[str, ...], ...] = ()  # (C,) keywords, or () if no class has any
    captions: tuple[str, ...] = ()  # (N,) a sentence for each image, or a line each; may be empty
    queries: NDArray[np.bool_] | None = None  # (N,) query or gallery image; None: each is both
    reader: Reader | None = None  # reads the images instead of their files

    def __post_init__(self) -> None:
        present = np.unique(self.labels)
        if not np.array_equal(present, np.arange(self.n_classes)):
            raise ValueError(
                f"{self.name}: labels must be 0..{self.n_classes - 1}, each at least once; "
                f"found {len(present)} distinct ones"
            )
        for field, length, wanted in (
            ("labels", len(self.labels), len(self.paths)),
            *(
                (field, len(getattr(self, field)) or self.n_classes, self.n_classes)
                for field in ("class_groups", "class_descriptions", "class_tags")
            ),
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
        return as_image(self.open(row).pixels().values)

    def open(self, row: int) -> LazyImage:
        return open_image(self.paths[row]) if self.reader is None else self.reader.open(row)

    def with_reader(self, reader: Reader | None) -> "ImageSet":
        """Return the same set with images that ``reader`` reads; None reads their files."""
        return replace(self, reader=reader)

    def label(self, row: int) -> int:
        return int(self.labels[row])

    def caption(self, row: int) -> str | None:
        return self.captions[row] if self.captions else None

    @cached_property
    def rows_by_class(self) -> tuple[NDArray[np.int64], ...]:
        """The rows of each class, in ascending order: C arrays, none of them empty."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=self.n_classes))
        return tuple(np.split(order, ends[:-1]))[: self.n_classes]  # of no images, it is one part

    @property
    def unmatched(self) -> NDArray[np.int64]:
        """The rows (M,) for which retrieval can find no image of their class."""
        if self.queries is None:
            return np.flatnonzero(np.bincount(self.labels)[self.labels] == 1)
        return np.flatnonzero(self.queries & ~np.isin(self.labels, self.labels[~self.queries]))

    def subset(self, rows: Sequence[int] | NDArray[np.int64], name: str) -> "ImageSet":
        """Return the images of ``rows``, in that order, their classes renumbered from 0."""
        rows = np.asarray(rows, dtype=np.int64)
        kept, labels = np.unique(self.labels[rows], return_inverse=True)

        def of_kept(entries: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(entries[label] for label in kept if entries)

        return ImageSet(
            name=name,
            paths=tuple(self.paths[row] for row in rows),
            labels=labels.astype(np.int64),
            class_names=of_kept(self.class_names),
            class_groups=of_kept(self.class_groups),
            class_descriptions=of_kept(self.class_descriptions),
            class_tags=of_kept(self.class_tags),
            captions=tuple(self.captions[row] for row in rows if self.captions),
            queries=None if self.queries is None else self.queries[rows],
            reader=None if self.reader is None else self.reader.take(rows),
        )

    def of_classes(self, classes: Sequence[int] | NDArray[np.int64], name: str) -> "ImageSet":
        """Return all images of ``classes``."""
        return self.subset(np.flatnonzero(np.isin(self.labels, classes)), name)
