"""Scores of each class, and intervals over classes, against loops and against theory."""

import math
from statistics import fmean

import numpy as np
import pytest
import torch
from scipy import stats

import metrics
from metrics import Gallery


def gallery(n=60, n_classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(
        0.6 ** torch.arange(n_classes).float(), n, replacement=True, generator=generator
    )
    return Gallery(torch.randn(n, 3, generator=generator), labels)


def test_per_class_equals_loops():
    images = gallery()
    _, queries = metrics.measure(["mAP", "recall@1", "nmi", "uniformity"], images)
    found = metrics.per_class(queries, images.labels)
    assert list(found) == ["mAP", "recall@1", "uniformity"]
    for name, values in found.items():
        assert values.shape == (6,)
        for label in range(6):
            own = queries[name][images.labels == label].tolist()
            own = [value for value in own if not math.isnan(value)]
            expected = fmean(own) if own else math.nan
            if name == "uniformity":
                expected = math.log(expected)
            assert float(values[label]) == pytest.approx(expected, nan_ok=True), (name, label)


def test_classes_that_do_not_count_are_nan():
    labels = torch.tensor([0, 0, 3])  # 3 is a singleton, 1 and 2 have no image
    found = metrics.per_class({"mAP": torch.tensor([1.0, 0.5, torch.nan]).double()}, labels)
    assert found["mAP"].tolist() == pytest.approx([0.75, math.nan, math.nan, math.nan], nan_ok=True)


def test_bootstrap_equals_a_loop_over_resamples():
    images = gallery(seed=1)
    _, queries = metrics.measure(["mAP", "uniformity"], images)
    found = metrics.bootstrap(queries, images.labels, resamples=50, level=0.8, seed=3)
    classes = images.labels.unique().tolist()
    rng = np.random.default_rng(3)
    means = {name: [] for name in queries}
    for _ in range(50):
        drawn = [classes[i] for i in rng.integers(len(classes), size=len(classes))]
        for name, values in queries.items():
            every = torch.cat([values[images.labels == label] for label in drawn])
            means[name].append(float(every.nanmean()))
    for name, finish in (("mAP", float), ("uniformity", math.log)):
        counted = {int(c) for c, v in zip(images.labels, queries[name], strict=True) if v == v}
        n = len(counted)  # classes: Student's t, and the n of a variance instead of its n - 1
        tail = stats.norm.cdf(-stats.t.ppf(0.9, n - 1) * math.sqrt(n / (n - 1)))
        bounds = np.quantile(means[name], [tail, 1 - tail])
        assert found[name] == pytest.approx([finish(bound) for bound in bounds])


@pytest.mark.parametrize("n_classes", [4, 6, 10])
def test_interval_of_few_classes_covers_the_mean_of_all(n_classes):
    """Plain percentiles hold it in 86 of 100 test sets of so few classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20 * n_classes) // 20
    held = 0
    for seed in range(100):
        skill = torch.rand(n_classes, generator=generator).double()  # mean 0.5
        values = (torch.rand(len(labels), generator=generator) < skill[labels]).double()
        low, high = metrics.bootstrap({"mAP": values}, labels, seed=seed)["mAP"]
        held += low <= 0.5 <= high
    assert held >= 91


def test_interval_is_as_wide_as_classes_differ():
    """Where all images of a class score alike, 100 classes are 100 observations and not 2,000."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 100
    values = torch.randn(100, generator=generator).double()[labels]
    low, high = metrics.bootstrap({"mAP": values}, labels)["mAP"]
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / 10, rel=0.1)
    assert low < float(values.mean()) < high


def test_interval_covers_the_mean_of_all_classes():
    """Of 100 test sets of 40 classes each, about 95 intervals hold the mean of their population."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) // 2
    held = 0
    for seed in range(100):
        skill = torch.rand(40, generator=generator).double()  # mean 0.5
        values = (torch.rand(80, generator=generator) < skill[labels]).double()
        low, high = metrics.bootstrap({"mAP": values}, labels, resamples=200, seed=seed)["mAP"]
        held += low <= 0.5 <= high
    assert 88 <= held <= 99


def test_bootstrap_is_seeded_and_ordered():
    images = gallery()
    queries = metrics.per_query(["mAP", "c_mAP"], images)
    found = metrics.bootstrap(queries, images.labels)
    assert found == metrics.bootstrap(queries, images.labels)
    assert found != metrics.bootstrap(queries, images.labels, seed=1)
    narrow = metrics.bootstrap(queries, images.labels, level=0.5)
    for name, (low, high) in found.items():
        assert low < narrow[name].low < float(queries[name].nanmean()) < narrow[name].high < high


def test_of_one_class_or_none_nothing_is_known():
    labels = torch.zeros(3, dtype=torch.int64)
    assert metrics.bootstrap({}, labels) == {}
    found = metrics.bootstrap({"mAP": torch.tensor([0.0, 0.5, 1.0]).double()}, labels)
    assert all(map(math.isnan, found["mAP"]))
    found = metrics.bootstrap({"mAP": torch.full((3,), torch.nan).double()}, labels)
    assert all(map(math.isnan, found["mAP"]))
