"""Batches that spread over the embedding space: greedy k-centre and D² sampling.

Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning,
ICML 2020, section on mini-batch creation; after Sinha et al., Small-GAN: Speeding Up GAN Training
using Core-Sets, ICML 2020.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .store import StoreSampler, squared_distances

TINY = np.finfo(np.float64).tiny


class Coreset(StoreSampler):
    """Picks bs / samples_per_class of bigbs random images and fills up with their classmates.

    A subclass writes ``pick``. Each picked image brings samples_per_class - 1 others of its class,
    drawn at random; of a smaller class every image comes equally often, give or take one. No class
    comes twice in a batch: once an image is picked, the others of its class cannot be. Where the
    bigbs images are of too few classes, one image of each of some others is added to them.

    In the released code a class can be picked again and an image be its own classmate, and what is
    picked from one random set of images is looked up in another, so that its batches are random.

    A batch costs O(bigbs² d) for the distances and O(bigbs) for each pick, in 8 bigbs² bytes,
    whatever N.
    """

    @abstractmethod
    def pick(self, points: NDArray[np.float64], classes: NDArray[np.int64]) -> list[int]:
        """Which of n candidates go into a batch.

        Args:
            points: (n, d).
            classes: (n,), of at least classes_per_batch different ones.

        Returns:
            classes_per_batch indices into the candidates, of different classes, in the order of
            picking.
        """

    def choose(self) -> NDArray[np.int64]:
        candidates = self.draw_candidates()
        classes = self.class_of[candidates]
        picked = self.pick(self.points(candidates), classes)
        return np.concatenate([self.with_classmates(candidates[i], classes[i]) for i in picked])

    def draw_candidates(self) -> NDArray[np.int64]:
        """bigbs random rows, and more where these are of fewer classes than a batch holds."""
        candidates = super().draw_candidates()
        present = np.unique(self.class_of[candidates])
        missing = self.classes_per_batch - len(present)
        if missing <= 0:
            return candidates
        others = np.setdiff1d(np.arange(len(self.rows_by_class)), present)
        added = self.rng.choice(others, missing, replace=False)
        extra = [self.rng.choice(self.rows_by_class[label]) for label in added]
        return np.concatenate([candidates, extra])

    def with_classmates(self, row: int, label: int) -> NDArray[np.int64]:
        """The image and others of its class, (samples_per_class,); a small class comes in turns."""
        rows = self.rows_by_class[label]
        others = self.rng.permutation(rows[rows != row])
        return np.resize(np.append(row, others), self.samples_per_class)

    @cached_property
    def class_of(self) -> NDArray[np.int64]:
        """Class of each row, (N,)."""
        classes = np.empty(self.n_images, np.int64)
        for label, rows in enumerate(self.rows_by_class):
            classes[rows] = label
        return classes


class GreedyCoreset(Coreset):
    """Picks the image farthest from those picked already: greedy k-centre.

    The first image is random; then, with S the images picked,

        next = argmax_i min_{s in S} ||x_i - x_s||²

    which leaves no candidate farther from S than twice the best choice of centres could. When all
    candidates left are covered, that is within gc_coreset_lim of S, the next is drawn at random:
    in a collapsed store which of them is farthest is a matter of rounding. The released code does
    not read that flag.

    Source: Roth et al., ICML 2020, greedy coreset distillation (GC); Sinha et al., ICML 2020,
    algorithm 1.

    Args:
        rows_by_class, bs, samples_per_class, rank, world_size, batchmatch_bigbs,
        sampler_lowproj_dim, sim_measure, mb_mom, store_every: see StoreSampler.
        gc_coreset_lim: squared distance up to which a candidate counts as covered, >= 0.
        gc_softened: draws the next at random from those at the 97th percentile of the distance
            or beyond, which takes single outliers less often.

    Raises:
        ValueError: as StoreSampler; a limit below 0.
    """

    def __init__(
        self,
        rows_by_class: Sequence[NDArray[np.int64]],
        bs: int,
        samples_per_class: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        batchmatch_bigbs: int = 512,
        gc_coreset_lim: float = 1e-9,
        gc_softened: bool = False,
        sampler_lowproj_dim: int = -1,
        sim_measure: str = "euclidean",
        mb_mom: float = -1,
        store_every: int = 1,
    ) -> None:
        super().__init__(
            rows_by_class,
            bs,
            samples_per_class,
            seed,
            rank,
            world_size,
            batchmatch_bigbs=batchmatch_bigbs,
            sampler_lowproj_dim=sampler_lowproj_dim,
            sim_measure=sim_measure,
            mb_mom=mb_mom,
            store_every=store_every,
        )
        if gc_coreset_lim < 0:
            raise ValueError(
                f"--data_gc_coreset_lim {gc_coreset_lim} is no squared distance; use 0 or more"
            )
        self.limit = gc_coreset_lim
        self.softened = gc_softened

    def pick(self, points: NDArray[np.float64], classes: NDArray[np.int64]) -> list[int]:
        distances = squared_distances(points)  # (n, n)
        picked = [int(self.rng.integers(len(points)))]
        free = classes != classes[picked[0]]  # (n,), can still be picked
        nearest = distances[picked[0]].copy()  # (n,), to the nearest of those picked
        while len(picked) < self.classes_per_batch:
            chosen = self._next(nearest, free)
            picked.append(chosen)
            free &= classes != classes[chosen]
            np.minimum(nearest, distances[chosen], out=nearest)
        return picked

    def _next(self, nearest: NDArray[np.float64], free: NDArray[np.bool_]) -> int:
        farthest = int(np.where(free, nearest, -1).argmax())
        if nearest[farthest] <= self.limit:
            return int(self.rng.choice(free.nonzero()[0]))
        if self.softened:
            far = free & (nearest >= np.percentile(nearest[free], 97))
            return int(self.rng.choice(far.nonzero()[0]))
        return farthest


class D2Coreset(Coreset):
    """Draws images that are likely under the data's Gaussian and far from those drawn already.

    With mu and C the mean and covariance of the candidates and S the images picked,

        p(i) ∝ N(x_i; mu, C) · (Σ_{s in S} ||x_i - x_s||²)^d2_coreset_lambda

    and the first is the candidate nearest to a point drawn from N(mu, C). It is the D² weighting
    of k-means++ (Arthur and Vassilvitskii, SODA 2007) with two changes of the released code: the
    density, which keeps outliers away, and the sum where k-means++ takes the nearest of S.

    In many dimensions the density varies by orders of magnitude between images, and decides; d of
    sampler_lowproj_dim tempers it. C has a millionth of its mean variance added to its diagonal, so
    that fewer images than dimensions, or duplicates, leave it invertible. The cost is O(bigbs d² +
    d³) more than the distances.

    Args:
        rows_by_class, bs, samples_per_class, rank, world_size, batchmatch_bigbs,
        sampler_lowproj_dim, sim_measure, mb_mom, store_every: see StoreSampler.
        d2_coreset_lambda: exponent of the squared distances, >= 0; 0 leaves the density alone.

    Raises:
        ValueError: as StoreSampler; an exponent below 0.
    """

    def __init__(
        self,
        rows_by_class: Sequence[NDArray[np.int64]],
        bs: int,
        samples_per_class: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        batchmatch_bigbs: int = 512,
        d2_coreset_lambda: float = 1.0,
        sampler_lowproj_dim: int = -1,
        sim_measure: str = "euclidean",
        mb_mom: float = -1,
        store_every: int = 1,
    ) -> None:
        super().__init__(
            rows_by_class,
            bs,
            samples_per_class,
            seed,
            rank,
            world_size,
            batchmatch_bigbs=batchmatch_bigbs,
            sampler_lowproj_dim=sampler_lowproj_dim,
            sim_measure=sim_measure,
            mb_mom=mb_mom,
            store_every=store_every,
        )
        if d2_coreset_lambda < 0:
            raise ValueError(
                f"--data_d2_coreset_lambda {d2_coreset_lambda} would favour near images; use 0 or "
                "more"
            )
        self.exponent = d2_coreset_lambda

    def pick(self, points: NDArray[np.float64], classes: NDArray[np.int64]) -> list[int]:
        distances = squared_distances(points)  # (n, n)
        density = log_density(points)  # (n,)
        picked = [self._first(points)]
        free = classes != classes[picked[0]]  # (n,), can still be picked
        sums = distances[picked[0]].copy()  # (n,), of squared distances to those picked
        while len(picked) < self.classes_per_batch:
            # The maximum of log p + Gumbel noise is a draw from p, which need not be normalised.
            # A sum of zero counts as the smallest number, for when there is no other.
            log_p = density + self.exponent * np.log(np.maximum(sums, TINY))
            noisy = log_p + self.rng.gumbel(size=len(points))
            chosen = int(np.where(free, noisy, -np.inf).argmax())
            picked.append(chosen)
            free &= classes != classes[chosen]
            sums += distances[chosen]
        return picked

    def _first(self, points: NDArray[np.float64]) -> int:
        """The candidate nearest to a point drawn from their Gaussian."""
        mean, n = points.mean(axis=0), len(points)
        # A sum of the centred points with independent normal weights has their covariance.
        drawn = mean + self.rng.standard_normal(n) @ (points - mean) / (n - 1) ** 0.5
        return int(np.square(points - drawn).sum(axis=1).argmin())


def log_density(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the Gaussian density of (n, d) points at each of them, up to a constant: (n,).

    -(x - mu)ᵀ C⁻¹ (x - mu) / 2 with mean and covariance of the points; 0 where they are all one.
    """
    centred = points - points.mean(axis=0)
    covariance = centred.T @ centred / (len(points) - 1)
    covariance.flat[:: len(covariance) + 1] += max(1e-6 * covariance.diagonal().mean(), TINY)
    return -0.5 * (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1)
