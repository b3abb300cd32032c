import math

import numpy as np
import pytest
import torch

from datasampler import ClassRandom
from datasampler.batchmatch import (
    N_BINS,
    DistHistBatchmatch,
    FIDBatchmatch,
    cumulative,
    pair_distances,
)
from tests.datasampler.toy import rows_by_class, rows_of, scatter

KINDS = pytest.mark.parametrize("kind", [DistHistBatchmatch, FIDBatchmatch])


def make(kind, bs=8, **options):
    return kind(rows_by_class([4] * 10), bs, 2, **options)


def distances(points):
    return [math.dist(points[i], points[j]) for i in range(len(points)) for j in range(i)]


def heights(values, low, high):
    """Normalised histogram, values beyond the range in the outer bins."""
    counts = [0] * N_BINS
    for value in values:
        place = math.floor((value - low) / (high - low) * N_BINS)
        counts[min(max(place, 0), N_BINS - 1)] += 1
    return [count / len(values) for count in counts]


def histogram_cost(data, batch):
    wanted = distances(data)
    low, high = min(wanted), max(wanted)
    above = total = 0.0
    for ours, theirs in zip(
        heights(wanted, low, high), heights(distances(batch), low, high), strict=True
    ):
        above += ours - theirs  # earth carried on to the next bin
        total += abs(above)
    return total * (high - low) / N_BINS


def frechet_cost(data, batch):
    """From the eigenvalues of the product of the covariances, which is not symmetric."""
    gap = data.mean(axis=0) - batch.mean(axis=0)
    one, two = np.cov(data.T), np.cov(batch.T)
    roots = np.sqrt(np.linalg.eigvals(one @ two).astype(complex)).real.sum()
    return gap @ gap + np.trace(one) + np.trace(two) - 2 * roots


@pytest.mark.parametrize("seed", range(3))
def test_histogram_cost_equals_loops(seed):
    data, batches = scatter(30, 4, seed=seed), scatter(5, 8, 4, seed=seed + 9) * 1.5
    expected = [histogram_cost(data, batch) for batch in batches]
    np.testing.assert_allclose(make(DistHistBatchmatch).costs(data, batches), expected, rtol=1e-9)


def test_histogram_cost_is_the_wasserstein_distance_of_the_bins():
    stats = pytest.importorskip("scipy.stats")
    data, batches = scatter(30, 4), scatter(5, 8, 4, seed=9)
    wanted = distances(data)
    low, high = min(wanted), max(wanted)
    places = low + (np.arange(N_BINS) + 0.5) * (high - low) / N_BINS
    expected = [
        stats.wasserstein_distance(
            places, places, heights(wanted, low, high), heights(distances(batch), low, high)
        )
        for batch in batches
    ]
    np.testing.assert_allclose(make(DistHistBatchmatch).costs(data, batches), expected, rtol=1e-9)


@pytest.mark.parametrize(("bs", "dim"), [(4, 9), (6, 6), (20, 5), (8, 1), (2, 3)])
def test_frechet_cost_equals_the_formula(bs, dim):
    data, batches = scatter(60, dim), scatter(4, bs, dim, seed=5) * 0.7 + 0.3
    if dim == 1:  # two variances: (mu - mu')² + (sigma - sigma')²
        expected = [
            (data.mean() - b.mean()) ** 2 + (data.std(ddof=1) - b.std(ddof=1)) ** 2 for b in batches
        ]
    else:
        expected = [frechet_cost(data, batch) for batch in batches]
    np.testing.assert_allclose(make(FIDBatchmatch).costs(data, batches), expected, atol=1e-6)


def test_frechet_cost_equals_the_matrix_square_root_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    data, batches = scatter(60, 5), scatter(4, 20, 5, seed=5)
    for cost, batch in zip(make(FIDBatchmatch).costs(data, batches), batches, strict=True):
        one, two = np.cov(data.T), np.cov(batch.T)
        gap = data.mean(axis=0) - batch.mean(axis=0)
        root = linalg.sqrtm(one @ two).real
        assert cost == pytest.approx(gap @ gap + np.trace(one + two - 2 * root), abs=1e-8)


@KINDS
@pytest.mark.parametrize("dim", [3, 30])
def test_the_data_themselves_cost_nothing(kind, dim):
    data = scatter(12, dim)
    costs = make(kind).costs(data, np.stack([data, data[::-1], 2 * data]))
    np.testing.assert_allclose(costs[:2], 0, atol=1e-6)
    assert costs[2] > 0.1


@KINDS
def test_the_batch_is_the_best_of_those_drawn(kind):
    """The sampler's draws, repeated by its parent with the same generator, and their costs."""
    cost = {DistHistBatchmatch: histogram_cost, FIDBatchmatch: frechet_cost}[kind]
    table = scatter(40, 5).astype(np.float32)
    sampler = make(kind, seed=3, batchmatch_bigbs=20, batchmatch_ncomps=6)
    sampler.refresh(torch.from_numpy(table))
    twin = ClassRandom(rows_by_class([4] * 10), 8, 2, seed=3)
    places = []
    for batch in sampler:
        drawn = [twin.draw_batch() for _ in range(6)]
        data = table[twin.rng.choice(40, 20, replace=False)].astype(float)
        costs = [cost(data, table[rows].astype(float)) for rows in drawn]
        places.append(int(np.argmin(costs)))
        assert rows_of(batch) == drawn[places[-1]].tolist()
    assert len(set(places)) > 1  # and not always the same of them


@KINDS
def test_one_candidate_is_class_random(kind):
    sampler = make(kind, seed=3, batchmatch_ncomps=1)
    sampler.refresh(torch.randn(40, 5))
    assert (
        rows_of(next(iter(sampler)))
        == ClassRandom(rows_by_class([4] * 10), 8, 2, seed=3).draw_batch().tolist()
    )


@KINDS
def test_more_candidates_come_nearer_to_the_data(kind):
    table = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))

    def mean_cost(ncomps):
        sampler = make(kind, batchmatch_ncomps=ncomps)
        sampler.refresh(table)
        chosen = [rows_of(batch) for _ in range(8) for batch in sampler]
        return sampler.costs(table.double().numpy(), table.double().numpy()[chosen]).mean()

    assert mean_cost(20) < 0.8 * mean_cost(1)


@KINDS
def test_a_batch_of_small_classes_repeats_their_images(kind):
    sampler = kind(rows_by_class([1] * 10), 8, 4)
    sampler.refresh(torch.randn(10, 3))
    assert [len(set(batch)) for batch in sampler] == [2]


def test_pair_distances_are_those_of_all_pairs():
    points = scatter(2, 6, 3)
    found = pair_distances(points)
    assert found.shape == (2, 15)
    for row, batch in zip(found, points, strict=True):
        np.testing.assert_allclose(sorted(row), sorted(distances(batch)))


def test_histograms_end_in_one_whatever_the_range():
    values = np.array([[0.0, 0.5, 1.0, 7.0], [-3.0, 0.2, 0.2, 0.2]])
    for low, high in ((0.0, 1.0), (0.2, 0.2)):
        np.testing.assert_array_equal(cumulative(values, low, high)[:, -1], [1, 1])
    np.testing.assert_array_equal(cumulative(values, 0.0, 1.0)[:, 0], [0.25, 0.25])
