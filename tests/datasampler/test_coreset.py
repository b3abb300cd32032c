import math
from collections import Counter

import numpy as np
import pytest
import torch

from datasampler.coreset import D2Coreset, GreedyCoreset, log_density
from tests.datasampler.toy import rows_by_class, rows_of, scatter

KINDS = pytest.mark.parametrize("kind", [GreedyCoreset, D2Coreset])


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


# --------------------------------------------------------------------------------- greedy k-centre


@pytest.mark.parametrize("seed", range(5))
def test_greedy_picks_the_farthest_of_a_class_not_yet_picked(seed):
    points = scatter(40, 5, seed=seed)
    classes = np.random.default_rng(seed).permutation(np.arange(40) % 12)
    sampler = GreedyCoreset(rows_by_class([4] * 12), 20, 2, seed)
    picked = sampler.pick(points, classes)
    assert len(picked) == 10
    expected = picked[:1]  # the first is random
    while len(expected) < 10:
        taken = {classes[i] for i in expected}
        free = [i for i in range(40) if classes[i] not in taken]
        expected.append(
            max(free, key=lambda i: min(squared(points[i], points[s]) for s in expected))
        )
    assert picked == expected


def test_greedy_covers_better_than_random_batches_do():
    points, classes = scatter(200, 3), np.arange(200)
    sampler = GreedyCoreset(rows_by_class([1] * 200), 20, 1, batchmatch_bigbs=200)

    def radius(chosen):
        return np.linalg.norm(points[:, None] - points[chosen], axis=2).min(axis=1).max()

    random = [np.random.default_rng(seed).choice(200, 20, replace=False) for seed in range(20)]
    worst = max(radius(sampler.pick(points, classes)) for _ in range(20))
    assert worst < min(radius(chosen) for chosen in random)


def test_greedy_starts_anywhere():
    sampler = GreedyCoreset(rows_by_class([1] * 6), 2, 1)
    first = Counter(sampler.pick(scatter(6, 2), np.arange(6))[0] for _ in range(600))
    assert len(first) == 6
    assert all(abs(count - 100) < 50 for count in first.values())  # standard deviation 9


def test_softened_greedy_draws_from_the_farthest_three_percent():
    points, classes = scatter(100, 4), np.arange(100)
    sampler = GreedyCoreset(rows_by_class([1] * 100), 2, 1, gc_softened=True)
    seen = {}
    for _ in range(800):
        first, second = sampler.pick(points, classes)
        seen.setdefault(first, set()).add(second)
    for first, seconds in seen.items():
        # 99 images are left; the 97th percentile stands between the 96th and the 97th of them
        order = sorted(range(100), key=lambda i: -squared(points[i], points[first]))
        assert seconds <= set(order[:3])
    assert max(len(seconds) for seconds in seen.values()) == 3


def test_covered_candidates_are_drawn_at_random_once_no_other_is_left():
    points = np.repeat([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]], [10, 1, 1], axis=0)  # ten duplicates
    points[:10] += 1e-6 * scatter(10, 2)  # within 1e-9 of each other, squared
    sampler = GreedyCoreset(rows_by_class([1] * 12), 4, 1)
    last = Counter()
    for _ in range(500):
        picked = sampler.pick(points, np.arange(12))
        assert {10, 11} <= set(picked[:3])  # all three places come first
        last[picked[3]] += 1
    assert set(last) == set(range(10))
    exact = GreedyCoreset(rows_by_class([1] * 12), 4, 1, gc_coreset_lim=0)
    fourth = {tuple(sorted(exact.pick(points, np.arange(12))[2:])) for _ in range(500)}
    assert len(fourth) < len(last)  # the farthest duplicate of each start, and no other


# ------------------------------------------------------------------------------------- D² sampling


def test_log_density_is_the_gaussian_of_the_points():
    points = scatter(50, 3) * [1.0, 0.2, 3.0] + 7
    mean, inverse = points.mean(axis=0), np.linalg.inv(np.cov(points.T))
    expected = [-(x - mean) @ inverse @ (x - mean) / 2 for x in points]
    np.testing.assert_allclose(log_density(points), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "points",
    [np.ones((9, 4)), scatter(3, 8), np.repeat(scatter(3, 5), 4, axis=0), np.zeros((5, 2))],
    ids=["collapsed", "fewer than dimensions", "duplicates", "zero"],
)
def test_log_density_of_degenerate_points_is_finite(points):
    density = log_density(points)
    assert np.isfinite(density).all()
    assert (density <= 1e-12).all()


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_d2_draws_by_density_times_summed_squared_distance(exponent):
    """Frequencies of the second and third pick given those before, by chi-square."""
    points = scatter(7, 2, seed=3)
    classes = np.array([0, 1, 2, 3, 4, 5, 5])  # the last two exclude each other
    sampler = D2Coreset(rows_by_class([1] * 5 + [2]), 3, 1, d2_coreset_lambda=exponent)
    counts = Counter()
    for _ in range(3000):
        picked = tuple(sampler.pick(points, classes))
        counts[picked[:1], picked[1]] += 1
        counts[picked[:2], picked[2]] += 1

    density = [math.exp(value) for value in log_density(points)]
    statistic = freedom = 0
    for before in {key[0] for key in counts}:
        drawn = sum(count for (start, _), count in counts.items() if start == before)
        taken = {classes[i] for i in before}
        weights = [
            0.0
            if classes[i] in taken
            else density[i] * sum(squared(points[i], points[s]) for s in before) ** exponent
            for i in range(7)
        ]
        expected = {i: drawn * w / sum(weights) for i, w in enumerate(weights)}
        assert all(counts[before, i] == 0 for i in range(7) if not weights[i])
        usual = [i for i in range(7) if expected[i] >= 5]
        statistic += sum((counts[before, i] - expected[i]) ** 2 / expected[i] for i in usual)
        freedom += len(usual) - 1
    assert freedom > 40
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_d2_starts_near_a_point_drawn_from_the_gaussian_of_the_candidates():
    """In one dimension: the share of the Gaussian that is nearest to each candidate."""
    points = np.array([[-2.0], [-0.5], [0.0], [1.5], [4.0]])
    sampler = D2Coreset(rows_by_class([1] * 5), 2, 1)
    first = Counter(sampler.pick(points, np.arange(5))[0] for _ in range(2000))
    mean, std = points.mean(), points.std(ddof=1)
    borders = (points[1:, 0] + points[:-1, 0]) / 2
    below = [0.5 * (1 + math.erf((x - mean) / std / math.sqrt(2))) for x in borders]
    shares = np.diff([0, *below, 1])
    statistic = sum((first[i] - 2000 * p) ** 2 / (2000 * p) for i, p in enumerate(shares))
    assert statistic < 20  # 4 degrees of freedom: exceeded once in two thousand seeds


def test_d2_takes_no_duplicate_of_a_picked_image_while_there_are_others():
    points = np.repeat(scatter(2, 3), 5, axis=0)
    sampler = D2Coreset(rows_by_class([1] * 10), 2, 1)
    for _ in range(100):
        first, second = sampler.pick(points, np.arange(10))
        assert first // 5 != second // 5


# -------------------------------------------------------------------------------------------- both


@KINDS
def test_candidates_of_too_few_classes_are_joined_by_images_of_others(kind):
    """One class holds nearly all images, so that a big batch is of two or three classes."""
    rows = rows_by_class([500] + [2] * 15)
    class_of = {int(row): c for c, part in enumerate(rows) for row in part}
    sampler = kind(rows, 24, 2, batchmatch_bigbs=24)
    sampler.refresh(torch.randn(530, 4, generator=torch.Generator().manual_seed(0)))
    chosen = Counter()
    for _ in range(10):
        for batch in sampler:
            classes = Counter(class_of[row] for row in rows_of(batch))
            assert len(classes) == 12
            assert set(classes.values()) == {2}
            assert len(set(rows_of(batch))) == 24
            chosen.update(classes)
    assert len(chosen) == 16


@KINDS
def test_big_batch_is_of_bigbs_different_images_or_of_all(kind):
    rows = rows_by_class([4] * 10)
    for bigbs, n in ((12, 12), (39, 39), (40, 40), (512, 40)):
        sampler = kind(rows, 12, 2, batchmatch_bigbs=bigbs)
        candidates = sampler.draw_candidates()
        assert len(set(candidates.tolist())) == len(candidates) == n


@KINDS
def test_a_picked_image_comes_with_others_of_its_class(kind):
    rows = rows_by_class([1, 2, 3, 9])
    sampler = kind(rows, 8, 4)
    for label, size in enumerate([1, 2, 3, 9]):
        for row in rows[label]:
            images = sampler.with_classmates(row, label).tolist()
            assert images[0] == row
            assert set(images) <= set(rows[label].tolist())
            expected = {1: [4], 2: [2, 2], 3: [1, 1, 2], 9: [1, 1, 1, 1]}[size]
            assert sorted(Counter(images).values()) == expected
    mates = {int(row) for _ in range(200) for row in sampler.with_classmates(rows[3][0], 3)}
    assert mates == set(rows[3].tolist())


@KINDS
def test_one_image_per_class_and_every_class_at_once(kind):
    sampler = kind(rows_by_class([3] * 8), 8, 1)
    sampler.refresh(torch.randn(24, 4))
    for batch in sampler:
        assert len(set(rows_of(batch))) == 8
