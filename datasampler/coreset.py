"""Batches that spread over the embedding space: greedy k-centre and D² sampling.

Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning,
ICML 2020, section on mini-batch creation; after Sinha et al., Small-GAN: Speeding Up GAN Training
using Core-Sets, ICML 2020.
"""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .store import StoreSampler, squared_distances

TINY = np.finfo(np.float64).tiny


class Coreset(StoreSampler):
    """Picks bs / samples_per_class of bigbs random images and fills up with their classmates.

    A subclass writes ``pick``. Each picked image brings samples_per_class - 1 others of its class,
    drawn at random; of a smaller class every image comes equally often, give or take one. No class
    comes twice in a batch. If the bigbs images are of too few classes, one image of each of some
    others is added to them. A batch costs O(bigbs² d), in 8 bigbs² bytes.

    In the released code a class can be picked again, an image be its own classmate, and picks are
    looked up in another random set of images.
    """

    @abstractmethod
    def pick(self, points: NDArray[np.float64], classes: NDArray[np.int64]) -> list[int]:
        """Pick classes_per_batch candidates of different classes, in the order of picking.

        ``points`` are (n, d), ``classes`` (n,) of at least classes_per_batch different values.
        """

    def choose(self) -> NDArray[np.int64]:
        candidates = self.draw_candidates()
        classes = self.class_of[candidates]
        picked = self.pick(self.points(candidates), classes)
        return np.concatenate([self.with_classmates(candidates[i], classes[i]) for i in picked])

    def draw_candidates(self) -> NDArray[np.int64]:
        """Draw bigbs rows, and more if these are of fewer classes than a batch holds."""
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
        """Return the image and others of its class, (samples_per_class,)."""
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


@dataclass(eq=False, repr=False)
class GreedyCoreset(Coreset):
    """Picks the image farthest from those picked already: greedy k-centre.

    The first image is random; then, with S the images picked,

        next = argmax_i min_{s in S} ||x_i - x_s||²

    Source: Roth et al., ICML 2020, greedy coreset distillation (GC); Sinha et al., ICML 2020,
    algorithm 1.

    Args, besides those of StoreSampler:
        gc_coreset_lim: squared distance up to which a candidate counts as covered, >= 0; when all
            are, as in a collapsed store, the next is random. The released code ignores it.
        gc_softened: draws the next at random from those at the 97th percentile of the distance
            or beyond, which takes single outliers less often.
    """

    _: KW_ONLY
    gc_coreset_lim: float = 1e-9
    gc_softened: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gc_coreset_lim < 0:
            raise ValueError(f"gc_coreset_lim must be 0 or more; got {self.gc_coreset_lim}")

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
        if nearest[farthest] <= self.gc_coreset_lim:
            return int(self.rng.choice(free.nonzero()[0]))
        if self.gc_softened:
            far = free & (nearest >= np.percentile(nearest[free], 97))
            return int(self.rng.choice(far.nonzero()[0]))
        return farthest


@dataclass(eq=False, repr=False)
class D2Coreset(Coreset):
    """Draws images that are likely under the data's Gaussian and far from those drawn already.

    With mu and C the mean and covariance of the candidates and S the images picked,

        p(i) ∝ N(x_i; mu, C) · (Σ_{s in S} ||x_i - x_s||²)^d2_coreset_lambda

    and the first is the candidate nearest to a point drawn from N(mu, C). It is the D² weighting
    of k-means++ (Arthur and Vassilvitskii, SODA 2007) with two changes of the released code: the
    density, which keeps outliers away, and the sum where k-means++ takes the nearest of S.

    In many dimensions the density decides; sampler_lowproj_dim tempers it. C has a millionth of its
    mean variance added to its diagonal, so that it is always invertible.

    Args, besides those of StoreSampler:
        d2_coreset_lambda: exponent of the squared distances, >= 0; 0 leaves the density alone.
    """

    _: KW_ONLY
    d2_coreset_lambda: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d2_coreset_lambda < 0:
            raise ValueError(f"d2_coreset_lambda must be 0 or more; got {self.d2_coreset_lambda}")

    def pick(self, points: NDArray[np.float64], classes: NDArray[np.int64]) -> list[int]:
        distances = squared_distances(points)  # (n, n)
        density = log_density(points)  # (n,)
        picked = [self._first(points)]
        free = classes != classes[picked[0]]  # (n,), can still be picked
        sums = distances[picked[0]].copy()  # (n,), of squared distances to those picked
        while len(picked) < self.classes_per_batch:
            # The maximum of log p + Gumbel noise is a draw from p, which need not be normalised.
            # A sum of zero counts as the smallest number, for when there is no other.
            log_p = density + self.d2_coreset_lambda * np.log(np.maximum(sums, TINY))
            noisy = log_p + self.rng.gumbel(size=len(points))
            chosen = int(np.where(free, noisy, -np.inf).argmax())
            picked.append(chosen)
            free &= classes != classes[chosen]
            sums += distances[chosen]
        return picked

    def _first(self, points: NDArray[np.float64]) -> int:
        """Return the candidate nearest to a point drawn from their Gaussian."""
        mean, n = points.mean(axis=0), len(points)
        # A sum of the centred points with independent normal weights has their covariance.
        drawn = mean + self.rng.standard_normal(n) @ (points - mean) / (n - 1) ** 0.5
        return int(np.square(points - drawn).sum(axis=1).argmin())


def log_density(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -(x - mu)ᵀ C⁻¹ (x - mu) / 2 of each of (n, d) points, mu and C theirs: (n,)."""
    centred = points - points.mean(axis=0)
    covariance = centred.T @ centred / (len(points) - 1)
    covariance.flat[:: len(covariance) + 1] += max(1e-6 * covariance.diagonal().mean(), TINY)
    return -0.5 * (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1)
