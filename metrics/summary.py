"""Scores of each class, and confidence intervals of means over queries."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

from metrics.registry import parse


class Interval(NamedTuple):
    low: float
    high: float


def per_class(queries: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return the (C,) float64 mean over the queries of each class; C is the largest label + 1.

    Queries that score NaN do not count; a class of which none counts is NaN. ``queries`` (Q,) are
    those of ``metrics.per_query``, ``labels`` (Q,) their classes.
    """
    means = {}
    for name, values in queries.items():
        sums, counts = _class_sums(values, labels)
        means[name] = parse(name).finish(sums / counts)
    return means


def bootstrap(
    queries: Mapping[str, Tensor],
    labels: Tensor,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the percentile interval of each mean over queries, for other classes of the same kind.

    Classes are drawn with replacement, each with all its queries, because images of a class are far
    from independent. All names share the draws. Percentiles of C classes are too near each other:
    ``level`` is raised so that for a normal distribution they are those of Student's t. NaN if
    queries of fewer than two classes count. Sources: Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13, with clusters for observations; Hesterberg, What Teachers Should
    Know About the Bootstrap, The American Statistician, 2015 (expanded percentiles).
    """
    if not queries:
        return {}
    # A mean over queries is a ratio of sums over classes, (C, M) each for M names.
    columns = [_class_sums(values, labels) for values in queries.values()]
    sums, counts = (torch.stack(part, dim=1).numpy() for part in zip(*columns, strict=True))
    present = labels.cpu().bincount().numpy() > 0
    sums, counts = sums[present], counts[present]

    rng = np.random.default_rng(seed)
    n_classes = len(sums)
    weights = (  # how often a class is drawn, one resample at a time
        np.bincount(rng.integers(n_classes, size=n_classes), minlength=n_classes).astype(float)
        for _ in range(resamples)
    )
    with np.errstate(invalid="ignore"):  # no query of the drawn classes counts: 0 / 0
        means = torch.from_numpy(np.stack([(w @ sums) / (w @ counts) for w in weights]))
    found = {}
    for name, column, n in zip(queries, means.T, (counts > 0).sum(axis=0).tolist(), strict=True):
        if n < 2:
            found[name] = Interval(math.nan, math.nan)
            continue
        tail = float(ndtr(-stdtrit(n - 1, (1 + level) / 2) * (n / (n - 1)) ** 0.5))
        ends = column.nanquantile(column.new_tensor([tail, 1 - tail]))
        found[name] = Interval(*map(float, parse(name).finish(ends)))
    return found


def _class_sums(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and number of the values of each class that are not NaN, (C,) float64 each."""
    counted = ~values.isnan()
    classes = labels.cpu()
    n_classes = int(classes.max()) + 1
    sums = values.new_zeros(n_classes).index_add_(0, classes[counted], values[counted])
    return sums, classes[counted].bincount(minlength=n_classes).double()
