"""Queries of an index: pictures, words, or pictures mixed with words."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utilities.console import printable


class Query(NamedTuple):
    """A picture, words, or both."""

    image: Path | None
    words: str | None = None

    def __str__(self) -> str:
        parts = [printable(self.image)] if self.image else []
        return " + ".join([*parts, *([f'"{printable(self.words)}"'] if self.words else [])])


def queries_of(images: Sequence[Path], words: Sequence[str]) -> list[Query]:
    """Return a query for each image, or each of the words, or each image with each of the words."""
    if not images:
        return [Query(None, text) for text in words]
    if not words:
        return [Query(image) for image in images]
    return [Query(image, text) for image in images for text in words]


def vectors_of(
    queries: Sequence[Query],
    images: NDArray[np.float32],
    words: NDArray[np.float32],
    weight: float,
) -> NDArray[np.float32]:
    """Return (Q, D) unit rows of the queries that ``queries_of`` made of images and words.

    That of image x and words t is (1 - weight) x + weight t, of length 1.

    Args:
        images: (I, D) unit rows, or none.
        words: (W, D) unit rows in the space of the images, or none.
        weight: of the words beside an image, in [0, 1].
    """
    if not len(words) or not len(images):
        return words if len(words) else images
    mixed = (1 - weight) * images[:, None] + weight * words  # (I, W, D)
    mixed = mixed.reshape(len(queries), -1)
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
