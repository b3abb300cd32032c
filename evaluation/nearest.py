"""Finds the images of an index that are nearest to queries, by exact search.

Without torch, so that a query need not wait for it.
"""

import filecmp
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.image_index import ImageIndex

ALIKE = 0.9999  # cosine of copies of a file, embedded in other batches or on another machine


class Hit(NamedTuple):
    """One neighbour of a query."""

    rank: int  # 1 is the nearest
    similarity: float  # cosine, in [-1, 1]
    path: Path


def search(
    queries: NDArray[np.float32],
    index: ImageIndex,
    *,
    k: int = 10,
    without: Sequence[Collection[int]] = (),
) -> list[list[Hit]]:
    """Return the k images of an index that are most similar to each query, by exact search.

    Equally similar images come in the order of their paths; a query in the index finds itself.

    Args:
        queries: (Q, D) unit rows.
        without: rows of the index that each query is not to find.
    """
    folder, files = index.provenance.folder, index.embedded.files
    found = []
    for query, left_out in zip(queries, without or [()] * len(queries), strict=True):
        nearest = most_similar(query, index.embedded.vectors, k + len(left_out))
        kept = [(row, cosine) for row, cosine in nearest if row not in left_out][:k]
        found.append(
            [Hit(n, cosine, folder / files[row].path) for n, (row, cosine) in enumerate(kept, 1)]
        )
    return found


def rows_of_image(image: Path, vector: NDArray[np.float32], index: ImageIndex) -> set[int]:
    """Return the rows of an index that hold an image: its own file, and copies with its bytes.

    Args:
        vector: (D,) unit embedding of the image; only files that are as good as equal are read.
    """
    folder, files = index.provenance.folder, index.embedded.files
    names = (image.absolute(), image.resolve())  # a link and what it leads to
    places = {name.relative_to(folder).as_posix() for name in names if name.is_relative_to(folder)}
    rows = {row for row, file in enumerate(files) if file.path in places}
    for row in np.flatnonzero(index.embedded.vectors @ vector > ALIKE).tolist():
        with suppress(OSError):  # one of them has vanished
            if filecmp.cmp(folder / files[row].path, image, shallow=False):
                rows.add(row)
    return rows


def most_similar(
    query: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> list[tuple[int, float]]:
    """Return row and cosine of the k of (N, D) unit rows nearest to a unit query, best first.

    Among equals the earlier row comes first; FAISS leaves their order open.
    """
    similarities = vectors @ query  # (N,)
    k = min(k, len(vectors))
    least = np.partition(similarities, -k)[-k]
    rows = np.flatnonzero(similarities >= least)  # more than k if the last one has equals
    rows = rows[np.argsort(-similarities[rows], kind="stable")][:k]
    # Rounding may leave the range of a cosine.
    return list(zip(rows.tolist(), similarities[rows].clip(-1, 1).tolist(), strict=True))
