"""Batches of pairs without classes: an image with itself, with a caption neighbour, or with any.

El Banani, Desai and Johnson, Learning Visual Representations via Language-Guided Sampling, CVPR
2023: two images whose captions are nearest neighbours take the place of two augmentations of one.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from language.pair_quality import blocks, mutual, quality, reach

from .base import Sampler, check_batch_size

LOG = logging.getLogger(__name__)

REMEDY = "recompute them with python -m language.neighbours"


class Pairs(Sampler):
    """A shuffled epoch of tuples (i, ..., i, j), ``n_views`` long; a subclass draws j for each i.

    Each image i comes at most once, and the few left over by the last full batch not at all.
    """

    distinct = False  # i and j are different images, which takes two views and two images
    rows: NDArray[np.int64] | None = None  # (M,) the images i that may come; None for all

    def __init__(
        self,
        n_images: int,
        bs: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        n_views: int = 2,
    ) -> None:
        if self.distinct and n_views < 2:
            raise ValueError(
                f"n_views must be 2 or more for pairs of two images; got {n_views}. Use a loss of "
                "two views, such as simclr, or augmented_pairs"
            )
        if self.distinct and n_images < 2:
            raise ValueError(f"n_images must be 2 or more for pairs of two images; got {n_images}")
        n_rows = n_images if self.rows is None else len(self.rows)
        super().__init__(n_rows, bs, seed, rank, world_size)
        self.n_views = n_views

    @abstractmethod
    def partners_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw j for each i of a batch: (bs,) -> (bs,)."""

    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        order = self.rng.permutation(self.n_images if self.rows is None else self.rows)
        for batch in order[: len(self) * self.bs].reshape(-1, self.bs):
            partners = self.partners_of(batch)
            yield list(zip(*[batch.tolist()] * (self.n_views - 1), partners.tolist(), strict=True))


class AugmentedPairs(Pairs):
    """Views of one image: tuples (i, i), which augmentation makes different."""

    def partners_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows


class RandomPairs(Pairs):
    """An image and any other: tuples (i, j), j uniform and drawn for each pair; the control."""

    distinct = True

    def partners_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        others = self.rng.integers(self.n_images - 1, size=len(rows))  # of those without i
        return others + (others >= rows)


class LanguagePairs(Pairs):
    """An image and one whose caption is a nearest neighbour of its own: tuples (i, j).

    j is drawn uniformly among the neighbours that are similar enough. An image without any is left
    out of the epoch, whatever ``pairs_self``. The published system has k = 1 and no pairs of an
    image with itself.

    Args, besides those of Pairs:
        partners: (N, k) integers, the rows of each image's neighbours, -1 for none. May be memory-
            mapped: read once, a block at a time, and then by the rows of each batch.
        similarities: (N, k) cosines of each image with its neighbours, in [-1, 1].
        pairs_threshold: least similarity of a pair; -1 keeps every neighbour.
        pairs_mutual: keep (i, j) only if i is among the k nearest of j too, or as similar to j as
            the least similar of these (``language.pair_quality.mutual``).
        pairs_self: probability of the tuple (i, i) instead, in [0, 1].

    Raises:
        ValueError: as Sampler; a single view; a value out of its range; the arrays do not fit the
            N images; ``pairs_threshold`` and ``pairs_mutual`` leave too few images for a batch.
    """

    distinct = True

    def __init__(
        self,
        n_images: int,
        bs: int,
        partners: NDArray[np.integer],
        similarities: NDArray[np.floating],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        n_views: int = 2,
        *,
        pairs_threshold: float = -1.0,
        pairs_mutual: bool = False,
        pairs_self: float = 0.0,
    ) -> None:
        check_batch_size(n_images, bs, world_size=world_size)
        if not 0 <= pairs_self <= 1:
            raise ValueError(f"pairs_self must be in [0, 1]; got {pairs_self:g}")
        if partners.shape != similarities.shape or partners.ndim != 2 or len(partners) != n_images:
            raise ValueError(
                f"neighbours of captions must be (N, k) for the {n_images} training images; got "
                f"partners {partners.shape} and similarities {similarities.shape}; {REMEDY}"
            )
        self.partners = partners
        self.similarities = similarities
        self.pairs_threshold = pairs_threshold
        self.pairs_mutual = pairs_mutual
        self.pairs_self = pairs_self

        self.refuse_strange_partners()
        self.reached = reach(partners, similarities)
        self.rows = self.rows_with_partners()
        self.n_left_out = n_images - len(self.rows)
        if len(self.rows) < bs:
            raise ValueError(self.too_few(len(self.rows), bs, world_size))
        super().__init__(n_images, bs, seed, rank, world_size, n_views)
        if rank:
            return
        if self.n_left_out:
            LOG.info(
                "skipped %d of %d training images: no %sneighbour's similarity reaches "
                "pairs_threshold %g",
                *(self.n_left_out, n_images, "mutual " * pairs_mutual, pairs_threshold),
            )
        found = quality(partners, similarities, usable=self.usable, reached=self.reached)
        LOG.info("language pairs: %s", found)

    def partners_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        partners = np.asarray(self.partners[rows], dtype=np.int64)  # (bs, k)
        usable = self.usable(partners, self.similarities[rows])
        place = self.rng.integers(usable.sum(axis=1))  # (bs,), among an image's usable neighbours
        column = (usable.cumsum(axis=1) > place[:, None]).argmax(axis=1)
        drawn = partners[np.arange(len(rows)), column]
        if self.pairs_self:
            drawn = np.where(self.rng.random(len(rows)) < self.pairs_self, rows, drawn)
        return drawn

    def usable(
        self, partners: NDArray[np.integer], similarities: NDArray[np.floating]
    ) -> NDArray[np.bool_]:
        """Return which neighbours may be drawn: those that exist, similar enough and mutual."""
        return self.candidates(partners, similarities) & (similarities >= self.pairs_threshold)

    def candidates(
        self, partners: NDArray[np.integer], similarities: NDArray[np.floating]
    ) -> NDArray[np.bool_]:
        """Return which neighbours may be drawn at some threshold."""
        if self.pairs_mutual:
            return mutual(partners, similarities, self.reached)
        return (partners >= 0) & (similarities >= -1)  # and not NaN

    def refuse_strange_partners(self) -> None:
        """Raise ValueError for partners that are no other rows of the images."""
        n_images = len(self.partners)
        for start, partners, _ in blocks(self.partners, self.similarities):
            rows = np.arange(start, start + len(partners))
            strange = ((partners < -1) | (partners >= n_images)).any(axis=1)
            if strange.any():
                raise ValueError(
                    f"neighbours of captions: image {rows[strange][0]} has the partners "
                    f"{partners[strange][0].tolist()}, which must be -1 or rows of the {n_images} "
                    f"training images; {REMEDY}"
                )
            own = (partners == rows[:, None]).any(axis=1)
            if own.any():
                raise ValueError(
                    f"neighbours of captions: image {rows[own][0]} is its own partner; {REMEDY}. "
                    "Use pairs_self for pairs of an image with itself"
                )

    def rows_with_partners(self) -> NDArray[np.int64]:
        """Return the images with a neighbour that may be drawn, (M,) ascending."""
        found = [
            start + np.flatnonzero(self.usable(partners, similarities).any(axis=1))
            for start, partners, similarities in blocks(self.partners, self.similarities)
        ]
        return np.concatenate(found)

    def too_few(self, n_left: int, bs: int, world_size: int) -> str:
        """Return the error if the filters leave no batch, with what would leave one."""
        nearest = np.concatenate(
            [
                np.where(self.candidates(partners, sims), sims, -np.inf).max(
                    axis=1, initial=-np.inf
                )
                for _, partners, sims in blocks(self.partners, self.similarities)
            ]
        )  # (N,)
        remedies = ["no pairs_mutual"] * self.pairs_mutual
        if np.isfinite(enough := np.sort(nearest)[-bs]):
            remedies.append(f"a threshold of {math.floor(1000 * enough) / 1000:g} or less")
        if fits := n_left - n_left % world_size:
            remedies.append(f"a batch of {fits} or less")
        return (
            f"pairs_threshold must leave bs = {bs} images with a {'mutual ' * self.pairs_mutual}"
            f"neighbour; got {self.pairs_threshold:g}, which leaves {n_left} of {len(nearest)}; "
            f"use {' or '.join(remedies) or 'images with captions that are more alike'}"
        )
