"""The best of several random batches: the one that is distributed most like the data.

Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning,
ICML 2020, section on mini-batch creation.
"""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from .store import StoreSampler, squared_distances

N_BINS = 50  # of a histogram of distances, as in the released code


@dataclass(eq=False, repr=False)
class Batchmatch(StoreSampler):
    """Draws batchmatch_ncomps batches as ClassRandom does and keeps the one of least cost.

    A subclass writes ``costs``, the distance of each candidate batch from the data, represented by
    batchmatch_bigbs images that are drawn at random for each batch. In the released code candidates
    are drawn from within these images, which are drawn class by class.

    Args, besides those of StoreSampler:
        batchmatch_ncomps: candidate batches, >= 1; 1 is ClassRandom.
    """

    _: KW_ONLY
    batchmatch_ncomps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batchmatch_ncomps < 1:
            raise ValueError(f"batchmatch_ncomps must be 1 or more; got {self.batchmatch_ncomps}")
        if self.bs < 2:
            raise ValueError(f"bs must be 2 or more to match a distribution; got {self.bs}")

    @abstractmethod
    def costs(self, data: NDArray[np.float64], batches: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each batch's distance from the data: (n, d) and (m, bs, d) give (m,)."""

    def choose(self) -> NDArray[np.int64]:
        batches = np.stack([self.draw_batch() for _ in range(self.batchmatch_ncomps)])  # (m, bs)
        costs = self.costs(self.points(self.draw_candidates()), self.points(batches))
        return batches[costs.argmin()]


class DistHistBatchmatch(Batchmatch):
    """Matches the distribution of pairwise distances.

        cost = W1(h_data, h_batch)

    h is the normalised histogram of the distances of all pairs, in 50 bins from the data's smallest
    to its largest, which take what lies beyond; W1 is the Wasserstein distance of two histograms,
    the area between their cumulative sums, in units of distance. The released code applies W1 to
    the heights of the bins, and adds the distances of mean and standard deviation.

    Source: Roth et al., ICML 2020, matching of distance distributions (DDM).
    """

    def costs(self, data: NDArray[np.float64], batches: NDArray[np.float64]) -> NDArray[np.float64]:
        wanted, found = pair_distances(data), pair_distances(batches)
        low, high = wanted.min(), wanted.max()
        gaps = cumulative(found, low, high) - cumulative(wanted[None], low, high)  # (m, bins)
        return np.abs(gaps).sum(axis=1) * (high - low) / N_BINS


class FIDBatchmatch(Batchmatch):
    """Matches mean and covariance: the Fréchet distance of two Gaussians.

        cost = ||mu_d - mu_b||² + tr(C_d + C_b - 2 (C_d C_b)^(1/2))

    with d the data and b a batch, and covariances that divide by n - 1.

    Source: Roth et al., ICML 2020, FRD-score matching, with the distance of Heusel et al., GANs
    Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, NeurIPS 2017.
    """

    def costs(self, data: NDArray[np.float64], batches: NDArray[np.float64]) -> NDArray[np.float64]:
        bs, dim = batches.shape[1:]
        mean, means = data.mean(axis=0), batches.mean(axis=1)  # (d,), (m, d)
        covariance = np.atleast_2d(np.cov(data, rowvar=False))  # (d, d)
        deviations = (batches - means[:, None]) / (bs - 1) ** 0.5  # X, (m, bs, d): C_b = Xᵀ X
        transposed = deviations.swapaxes(1, 2)

        # tr (C_d C_b)^(1/2) is the sum of roots of the eigenvalues of C_d Xᵀ X. The symmetric
        # matrices X C_d Xᵀ and R Xᵀ X R with R² = C_d have the same; the smaller is the cheaper.
        if bs <= dim:
            product = deviations @ covariance @ transposed  # (m, bs, bs)
        else:
            root = square_root(covariance)
            product = root @ (transposed @ deviations) @ root  # (m, d, d)
        eigenvalues = np.linalg.eigvalsh(product).clip(min=0)  # below 0 by rounding

        return (
            np.square(means - mean).sum(axis=1)
            + covariance.trace()
            + np.square(deviations).sum(axis=(1, 2))
            - 2 * np.sqrt(eigenvalues).sum(axis=1)
        )


def pair_distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Euclidean distances of all pairs of rows of (..., n, d): (..., n (n - 1) / 2)."""
    first, second = np.triu_indices(points.shape[-2], 1)
    return np.sqrt(squared_distances(points)[..., first, second])


def cumulative(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return cumulative normalised histograms of the rows of (m, p): (m, bins), ending in 1."""
    scale = N_BINS / (high - low) if high > low else 0.0
    bins = ((values - low) * scale).astype(np.int64).clip(0, N_BINS - 1)
    bins += N_BINS * np.arange(len(values))[:, None]  # a range of bins for each row
    counts = np.bincount(bins.ravel(), minlength=N_BINS * len(values)).reshape(-1, N_BINS)
    return counts.cumsum(axis=1) / values.shape[1]


def square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric square root of a (d, d) matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
