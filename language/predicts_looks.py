"""Measures how far words predict looks: do classes with similar words look similar?

Two symmetric matrices of C items, classes or captioned images, are compared: similarities by words
and by images. The rank correlation is Spearman's rho over the C (C - 1) / 2 pairs. Pairs that share
an item are not independent, so chance is measured by permuting the items' words (Mantel, Cancer
Research 1967), and the standard error by leaving out each item in turn (Arvesen, Annals of
Mathematical Statistics 1969).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # items; of four, leaving one out leaves three pairs
NEAR = 0.01  # share of the other images that count as visual neighbours
BLOCK = 1024  # images compared with all others at a time

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class Looks(NamedTuple):
    """Image similarities of C items, ranked once for all words that are compared with them."""

    pairs: Floats  # (C, C), as of ``pair_ranks``
    places: Floats  # (C, C), as of ``places``


class Prediction(NamedTuple):
    """The success of C items' words in predicting their looks, and that of permuted words."""

    correlation: float  # Spearman's rho over pairs of items, in [-1, 1]
    without: Floats  # (C,) the correlation without each item
    chance: Floats  # (P,) the correlation of permuted words
    nearest: Ints  # (C,) the item whose words are nearest; of several, a random one
    places: Floats  # (C,) the visual place of ``nearest`` among the others, 1 to C - 1
    chance_places: Floats  # (P,) the median place under permuted words

    @property
    def error(self) -> float:
        """Standard error of the correlation over the choice of items."""
        return jackknife_error(self.without)

    @property
    def place(self) -> float:
        return float(np.median(self.places))

    @property
    def excess(self) -> float:
        """The correlation beyond that of permuted words, whose mean is not exactly 0."""
        return self.correlation - float(self.chance.mean())


def image_similarities(features: Floats, labels: Ints) -> Floats:
    """Return (C, C) cosines of class means of unit features (N, F), centred on their own mean.

    Features of a network share a large part, and a class close to it resembles all others. Without
    that part, chance varies five times less on emoji, so that fewer classes are enough.
    """
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    sums = np.zeros((labels.max() + 1, features.shape[1]))
    np.add.at(sums, labels, features)
    means = sums / np.bincount(labels)[:, None]
    means -= means.mean(axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means @ means.T


class Partners(NamedTuple):
    """The image with the nearest caption, for each of N images."""

    nearest: Ints  # (N,); of equally near captions a random one
    cosines: Floats  # (N,) of the two captions
    places: Floats  # (N,) the visual place of ``nearest`` among the others, 1 to N - 1

    def above(self, threshold: float) -> tuple[float, float]:
        """Return the share of images whose partner's caption has at least this cosine.

        And of these, the share whose partner is a visual neighbour, among the most similar 1 % of
        the images; NaN for none.
        """
        kept = self.cosines >= threshold
        near = self.places <= max(1, NEAR * (len(kept) - 1))
        return float(kept.mean()), float(near[kept].mean()) if kept.any() else float("nan")


def partners(words: Floats, features: Floats, seed: int = 0) -> Partners:
    """Return the partners of N images, of caption embeddings (N, D) and image features (N, F).

    Images are compared as in ``image_similarities``.
    """
    images = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    images = images - images.mean(axis=0)
    images /= np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-12)
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, len(words), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(words)))
        own = (rows - start, rows)
        by_words, by_looks = words[rows] @ words.T, images[rows] @ images.T
        by_words[own] = by_looks[own] = -np.inf
        nearest = _one_of_the_largest(by_words, rng)
        looked = by_looks[rows - start, nearest][:, None]
        place = (by_looks > looked).sum(axis=1) + ((by_looks == looked).sum(axis=1) + 1) / 2
        found.append((nearest, by_words[rows - start, nearest], place))
    return Partners(*map(np.concatenate, zip(*found, strict=True)))


def looks(sims: Floats) -> Looks:
    """Rank image similarities (C, C); raise ValueError for fewer than ``FEWEST`` items."""
    if len(sims) < FEWEST:
        raise ValueError(
            f"words and looks are compared over {FEWEST} or more items; got {len(sims)}"
        )
    return Looks(pair_ranks(sims), places(sims))


def permutations(n_items: int, n: int, seed: int) -> Ints:
    """Return (n, n_items) permutations; words that are compared must share them."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n_items) for _ in range(n)])


def predict(words: Floats, looks: Looks, orders: Ints, seed: int = 0) -> Prediction:
    """Compare word similarities (C, C) with looks.

    Args:
        orders: (P, C), of ``permutations``: item i gets the words of orders[b, i].
        seed: of the choice between items whose words are equally near.
    """
    ranks = pair_ranks(words)
    nearest = nearest_other(words, np.random.default_rng(seed))
    items = np.arange(len(words))
    chance, chance_places = [], []
    for order in orders:
        chance.append(_product(ranks[np.ix_(order, order)], looks.pairs))
        # The nearest by the words of another: look up its words' owner, and find who got those.
        owner = np.empty_like(order)
        owner[order] = items
        chance_places.append(np.median(looks.places[items, owner[nearest[order]]]))
    return Prediction(
        _product(ranks, looks.pairs),
        _without_each(ranks, looks.pairs),
        np.array(chance),
        nearest,
        looks.places[items, nearest],
        np.array(chance_places),
    )


def p_value(candidates: Sequence[Prediction], best: int) -> float:
    """Return how often the best of permuted candidates is as good as candidate ``best``.

    Candidates share their permutations, so that the choice among many is accounted for (Westfall
    and Young, Resampling-Based Multiple Testing, 1993). At least 1 / (P + 1).
    """
    excesses = np.stack([one.chance - one.chance.mean() for one in candidates])  # (M, P)
    reached = (excesses.max(axis=0) >= candidates[best].excess).sum()
    return float(1 + reached) / (1 + excesses.shape[1])


def jackknife_error(without: Floats) -> float:
    """Return the standard error of a statistic from its values (C,) without each item."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def pair_ranks(sims: Floats) -> Floats:
    """Return (C, C) ranks of the pairs, symmetric, 0 on the diagonal; ties have their mean rank.

    They are centred and have length 1 over the pairs; constant similarities have ranks of 0.
    """
    from scipy.stats import rankdata

    above = np.triu_indices(len(sims), 1)
    ranks = rankdata(sims[above])
    ranks -= ranks.mean()
    length = np.sqrt(np.square(ranks).sum())
    table = np.zeros((len(sims), len(sims)), np.float32)
    table[above] = ranks / length if length else 0
    return table + table.T


def places(sims: Floats) -> Floats:
    """Return (C, C): the place of column j among the items most similar to row i, from 1.

    Ties have their mean place; an item's own is C.
    """
    from scipy.stats import rankdata

    others = np.array(sims, np.float32)
    np.fill_diagonal(others, -np.inf)
    return rankdata(-others, axis=1).astype(np.float32)


def nearest_other(sims: Floats, rng: np.random.Generator) -> Ints:
    """Return (C,), the most similar other item of each; of equally similar ones a random one."""
    others = np.array(sims, np.float32)
    np.fill_diagonal(others, -np.inf)
    return _one_of_the_largest(others, rng)


def _one_of_the_largest(table: Floats, rng: np.random.Generator) -> Ints:
    """Return the column of the largest value of each row, a random one of several."""
    best = table == table.max(axis=1, keepdims=True)
    return np.where(best, rng.random(table.shape, np.float32), -1).argmax(axis=1)


def _product(first: Floats, second: Floats) -> float:
    """The correlation of two results of ``pair_ranks``, which hold each pair twice."""
    return float(np.vdot(first, second)) / 2


def _without_each(first: Floats, second: Floats) -> Floats:
    """(C,) the correlation of two results of ``pair_ranks`` without each item."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    by_item = [part.sum(axis=1) for part in (x, y, x * x, y * y, x * y)]  # sums over its pairs
    sx, sy, sxx, syy, sxy = (part.sum() / 2 - part for part in by_item)
    n = (len(x) - 1) * (len(x) - 2) / 2
    covariance = sxy - sx * sy / n
    lengths = np.sqrt((sxx - sx * sx / n) * (syy - sy * sy / n))
    return np.divide(covariance, lengths, out=np.zeros_like(sx), where=lengths > 1e-12)
