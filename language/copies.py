"""Rows of one vector, or of one text, are searched once and pair up in a ring.

The next row after the query's own comes first, and after the last the first. "Lowest row first"
would make one of a thousand copies the partner of the other 999.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

READ_ROWS = 1 << 16  # rows, or texts, read at a time

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Vectors(Protocol):
    """(N, D) floating vectors, in memory or not: an array, a memory map, an ``EmbeddingStore``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Return the rows of a slice or of an array of int64."""


class Groups(NamedTuple):
    """M rows in U groups, of one vector or text each; rows are places in the scope, 0..M-1."""

    group: Ints  # (M,) in [0, U), -1 for a zero row
    members: Ints  # (M - zero rows,) ascending within each group, group after group
    starts: Ints  # (U + 1,) where each group begins in members
    keys: Ints  # group * M + row of each of members, ascending


def group(vectors: Vectors, scope: Ints, texts: Ints | None) -> tuple[Groups, NDArray[np.bool_]]:
    """Return the groups of the rows ``scope`` (M,), and (M,) whether each of these is zero."""
    m = len(scope)
    zero = np.zeros(m, bool)
    hashes = np.zeros((m, 2), np.uint64)
    for start in range(0, m, READ_ROWS):
        block = read_rows(vectors, scope[start : start + READ_ROWS])
        if not np.isfinite(block).all():
            raise ValueError(
                f"a vector among rows {scope[start]} to {scope[start + len(block) - 1]} is not "
                "finite; embed again"
            )
        zero[start : start + len(block)] = ~block.any(axis=1)
        if texts is None:
            hashes[start : start + len(block)] = hash_rows(block + block.dtype.type(0))  # no -0
    codes = distinct(hashes) if texts is None else texts[scope]
    groups = np.full(m, -1, np.int64)
    _, first, number = np.unique(codes[~zero], return_index=True, return_inverse=True)
    groups[~zero] = first.argsort().argsort()[number]  # the first rows of the groups ascend
    order = np.argsort(groups, kind="stable")[zero.sum() :]
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups[order]))]).astype(np.int64)
    return Groups(groups, order, starts, groups[order] * m + order), zero


def share_out(
    groups: Groups, rows: Ints, found: Ints, sims: Floats, *, own_too: bool
) -> tuple[Ints, Floats]:
    """Turn the groups ``found`` (U, k) nearest to each into the k rows nearest to each of ``rows``.

    With ``own_too`` rows of the own group come first, with cosine 1.
    """
    k = found.shape[1]
    own = groups.group[rows]
    near = np.concatenate([own[:, None], found[own]], axis=1)  # (B, 1 + k), nearest first
    cosines = np.concatenate([np.ones((len(rows), 1), np.float32), sims[own]], axis=1)
    sizes = np.where(near < 0, 0, np.diff(groups.starts)[near])
    counts = sizes.copy()  # how many partners each group has to give
    counts[:, 0] = sizes[:, 0] - 1 if own_too else 0
    ends = np.minimum(counts, k).cumsum(axis=1)
    # The group that fills each of the k slots, and how many of its rows have gone before.
    which = (ends[:, None, :] <= np.arange(k)[None, :, None]).sum(axis=2)  # (B, k)
    filled = which <= k
    which = np.minimum(which, k)
    chosen, size, end, count = (
        np.take_along_axis(part, which, axis=1) for part in (near, sizes, ends, counts)
    )
    gone = np.arange(k) - (end - np.minimum(count, k))
    # The ring: from the first row after the query's own on.
    chosen, size = np.where(filled, chosen, 0), np.where(filled, size, 1)
    begin = groups.starts[chosen]
    after = np.searchsorted(groups.keys, chosen * len(groups.group) + rows[:, None], side="right")
    places = groups.members[begin + (after - begin + gone) % size]
    return (
        np.where(filled, places, -1),
        np.where(filled, np.take_along_axis(cosines, which, axis=1), -np.inf).astype(np.float32),
    )


def read_rows(vectors: Vectors, rows: Ints) -> NDArray[Any]:
    """Return ascending rows; consecutive ones by a slice, which a memory map reads at once."""
    whole = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
    return np.asarray(vectors[int(rows[0]) : int(rows[-1]) + 1] if whole else vectors[rows])


def hash_rows(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Return (M, 2), 128 bits for each row, the same for the same bytes."""
    return _hash(memoryview(row) for row in np.ascontiguousarray(rows))


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return (N, 2), 128 bits for each text, the same for the same text; reads texts in slices."""
    parts = [np.zeros((0, 2), np.uint64)]
    for start in range(0, len(texts), READ_ROWS):
        some = texts[start : start + READ_ROWS]
        parts.append(_hash(text.encode("utf-8", "surrogatepass") for text in some))
    return np.concatenate(parts)


def _hash(contents: Iterable[bytes | memoryview]) -> NDArray[np.uint64]:
    """(M, 2): BLAKE2; among 10^7 contents two are alike by chance once in 10^24 times."""
    digests = b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents)
    return np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64)


def distinct(hashes: NDArray[np.uint64]) -> Ints:
    """Return (M,), the same number for the same hash (M, 2), in [0, M)."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(fresh) - 1
    return codes
