"""Tells mutual partners, and measures pairs: how alike they are, how often one image is a partner.

All functions read the (N, k) arrays of ``language.partner_folder`` a block at a time, so that these
may be memory-mapped.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18  # rows in memory at a time
TOLERANCE = 1e-5  # in cosine: a partner this much less similar than another is as near

Numbers = NDArray[np.integer]
Similarities = NDArray[np.floating]
Usable = Callable[[Numbers, Similarities], NDArray[np.bool_]]  # (B, k) each -> (B, k)


class Quality(NamedTuple):
    """Numbers about the pairs (i, j) of N images; NaN where there is no pair."""

    images: int  # with a partner
    pairs: int
    similarity: float  # mean cosine of a pair's captions
    mutual: float  # share of pairs, in [0, 1]
    partners: int  # distinct images j
    busiest: int  # pairs of the image that is most often the partner
    visual: float | None = None  # share of pairs that are visual neighbours, in [0, 1]

    def __str__(self) -> str:
        text = (
            f"{self.pairs:,} pairs of {self.images:,} images, mean similarity "
            f"{self.similarity:.3f}, {self.mutual:.1%} mutual; {self.partners:,} distinct "
            f"partners, one of them in {self.busiest:,} pairs"
        )
        return text if self.visual is None else f"{text}; {self.visual:.2%} look alike"


def blocks(partners: Any, similarities: Any) -> Iterator[tuple[int, Numbers, Similarities]]:
    """Yield the (N, k) arrays a block of rows at a time: first row, partners, similarities."""
    for start in range(0, len(partners), BLOCK):
        block = slice(start, start + BLOCK)
        yield start, np.asarray(partners[block]), np.asarray(similarities[block])


def reach(partners: Any, similarities: Any) -> NDArray[np.float32]:
    """Return (N,) the least similarity of each row's k partners; -inf where it has fewer than k."""
    found = [
        np.where(some >= 0, sims, -np.inf).min(axis=1).astype(np.float32)
        for _, some, sims in blocks(partners, similarities)
    ]
    return np.concatenate(found)


def mutual(
    partners: Numbers, similarities: Similarities, reached: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return (B, k) which pairs (i, j) are mutual: i is as near to j as the k partners of j.

    Ties are mutual, so that images of one caption are, however many there are. ``reached`` is
    ``reach`` of all rows; where that is -inf, every candidate is a partner of j.
    """
    return (partners >= 0) & (similarities >= reached[partners] - TOLERANCE)


def quality(
    partners: Any,
    similarities: Any,
    *,
    usable: Usable | None = None,
    reached: NDArray[np.float32] | None = None,
    looks: Any = None,
) -> Quality:
    """Measure the pairs that are ``usable``; by default all of them.

    Args:
        partners, similarities: (N, k).
        reached: ``reach`` of them, if it is known.
        looks: (N, m) visual neighbours of each row.
    """
    if reached is None:
        reached = reach(partners, similarities)
    chosen = np.zeros(len(partners), np.int64)  # pairs in which each row is the partner
    images = n_mutual = n_visual = 0
    total = 0.0
    for start, some, sims in blocks(partners, similarities):
        kept = some >= 0 if usable is None else usable(some, sims)
        images += int(kept.any(axis=1).sum())
        chosen += np.bincount(some[kept], minlength=len(chosen))
        total += float(sims[kept].sum(dtype=np.float64))
        n_mutual += int((mutual(some, sims, reached) & kept).sum())
        if looks is not None:
            near = np.asarray(looks[start : start + len(some)])
            for column in range(some.shape[1]):
                seen = (some[:, column, None] == near).any(axis=1)
                n_visual += int((seen & kept[:, column]).sum())
    pairs = int(chosen.sum())

    def share(count: float) -> float:
        return count / pairs if pairs else float("nan")

    return Quality(
        images, pairs, share(total), share(n_mutual), int((chosen > 0).sum()), int(chosen.max()),
        None if looks is None else share(n_visual),
    )  # fmt: skip
