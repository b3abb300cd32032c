"""Small samplers of every kind, and what they draw from."""

import numpy as np
import torch
import torch.nn.functional as F

from datasampler import (
    AugmentedPairs,
    ClassRandom,
    ClassRelated,
    D2Coreset,
    DistHistBatchmatch,
    FIDBatchmatch,
    GreedyCoreset,
    LanguagePairs,
    Random,
    RandomPairs,
)


def rows_by_class(sizes, seed=0):
    """Rows of classes of the given sizes, shuffled over the rows."""
    rows = np.random.default_rng(seed).permutation(sum(sizes))
    return tuple(np.split(rows, np.cumsum(sizes)[:-1]))


def words(n, dim=8, seed=0):
    """(n, dim) random unit rows."""
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def scatter(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def rows_of(batch):
    """The rows of a batch of one view."""
    return [row for (row,) in batch]


SIZES = [9, 3, 5, 1, 2, 8, 7, 4, 6, 10]  # N = 55
ROWS = rows_by_class(SIZES)
CLASS_OF = {int(row): label for label, rows in enumerate(ROWS) for row in rows}
N, BS = 60, 12  # of pairs


def neighbours(n=N, k=3, seed=0):
    """Random neighbours, nearest first, none of them the image itself."""
    rng = np.random.default_rng(seed)
    partners = np.stack(
        [rng.permutation(np.delete(np.arange(n), row))[:k] for row in range(n)]
    ).astype(np.int64)
    similarities = -np.sort(-rng.uniform(0.2, 1, (n, k)), axis=1).astype(np.float32)
    return partners, similarities


def language(*place, n=N, bs=BS, k=3, n_views=2, **changed):
    return LanguagePairs(n, bs, *neighbours(n, k), *place, n_views=n_views, **changed)


def by_class(kind, **options):
    return lambda *place: kind(ROWS, BS, 3, *place, **options)


MAKE = {
    "random": lambda *place: Random(55, BS, *place),
    "class_random": by_class(ClassRandom),
    "class_related": lambda *place: ClassRelated(ROWS, BS, 3, words(10), *place, related_classes=2),
    "greedy_coreset": by_class(GreedyCoreset, batchmatch_bigbs=20, mb_mom=0.5, store_every=2),
    "softened_coreset": by_class(GreedyCoreset, batchmatch_bigbs=20, gc_softened=True),
    "d2_coreset": by_class(D2Coreset, sampler_lowproj_dim=3),
    "disthist_batchmatch": by_class(DistHistBatchmatch, sim_measure="cosine"),
    "fid_batchmatch": by_class(FIDBatchmatch, batchmatch_ncomps=3),
    "augmented": lambda *place: AugmentedPairs(N, BS, *place),
    "random_pairs": lambda *place: RandomPairs(N, BS, *place),
    "language": language,
    "language_threshold": lambda *place: language(*place, pairs_threshold=0.8, pairs_self=0.3),
}
PAIRS = {"augmented", "random_pairs", "language", "language_threshold"}
BY_CLASS = [name for name in MAKE if name not in PAIRS | {"random"}]
STORED = [name for name in MAKE if name.endswith(("_coreset", "_batchmatch"))]


def made(name, *place):
    """A sampler of seed, rank and number of processes; those that need embeddings have some."""
    sampler = MAKE[name](*place)
    if sampler.due(1):
        sampler.refresh(words(55))
    return sampler
