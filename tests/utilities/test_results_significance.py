"""Intervals and tests beside scipy's, and beside hands."""

import math

import numpy as np
import pytest
from scipy import stats

from utilities.results.significance import holm, interval, paired_t, signed_rank, stars


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_interval_equals_scipys(n):
    values = np.random.default_rng(n).normal(0.5, 0.1, n)
    mean, half = interval(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_interval_of_few_and_of_broken_values():
    """Mean 2, s 1, n 3: 4.3027 / sqrt(3)."""
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.48414, abs=1e-5))
    assert interval([5.0]) == (5.0, pytest.approx(math.nan, nan_ok=True))
    assert all(map(math.isnan, interval([1.0, math.nan, 2.0])))


@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_paired_t_equals_scipys(n):
    a, b = np.random.default_rng(n).normal(0.5, 0.1, (2, n))
    assert paired_t((a - b).tolist()) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_t((b - a).tolist()) == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_paired_t_where_nothing_varies():
    assert math.isnan(paired_t([0.3])) and math.isnan(paired_t([0.3, math.nan]))
    assert paired_t([0.0, 0.0, 0.0]) == 1.0
    assert paired_t([0.5, 0.5, 0.5]) == 0.0


def test_signed_rank_needs_six_pairs():
    """All six gains positive: 2 of the 2^6 ways to sign the ranks are as extreme."""
    gains = [0.01, 0.02, 0.03, 0.05, 0.04, 0.06]
    assert signed_rank(gains) == pytest.approx(2 / 2**6)
    assert math.isnan(signed_rank(gains[:5]))
    assert math.isnan(signed_rank([*gains[:5], 0.0]))
    assert math.isnan(signed_rank([*gains, math.nan]))


def test_holm_by_hand():
    """3 × 0.01; then 2 × 0.03; then the larger of 0.04 and what came before."""
    adjusted = holm({"b": 0.03, "c": 0.04, "a": 0.01, "untested": math.nan})
    assert adjusted.pop("untested") != adjusted.get("a")
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_keeps_the_share_of_false_alarms():
    """Five true nulls at a time: a star in about 5 % of draws, uncorrected in 23 %."""
    rng = np.random.default_rng(0)
    draws = rng.uniform(size=(2000, 5))
    alarms = np.mean([min(holm(dict(enumerate(row))).values()) < 0.05 for row in draws])
    assert 0.035 < alarms < 0.065
    assert np.mean(draws.min(axis=1) < 0.05) > 0.2


def test_stars():
    assert [stars(p) for p in (0.009, 0.01, 0.049, 0.05, math.nan)] == ["**", "*", "*", "", ""]
