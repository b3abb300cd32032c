"""Intervals and tests over seeds: what a mean of few runs can say.

scipy is imported inside the functions, so that the module costs nothing where none is called.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

LEAST_PAIRS = 6  # with fewer, no signed-rank test reaches p < 0.05: 2 / 2^5 = 0.0625

K = TypeVar("K")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval (Student's t).

    The half-width is nan for a single value; both are nan where a value is not finite.
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 0.975))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def paired_t(differences: Sequence[float]) -> float:
    """p of the two-sided t-test that paired differences have mean 0 (Student, Biometrika 1908).

    nan for less than two differences or one that is not finite: nothing can be said. 1 where all
    are 0, and 0 where all are equal and not 0.
    """
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if not deviation:
        return 0.0 if mean else 1.0
    from scipy.special import stdtr

    n = len(differences)
    return 2 * float(stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))


def signed_rank(differences: Sequence[float]) -> float:
    """p of the two-sided signed-rank test (Wilcoxon, Biometrics Bulletin 1945), by scipy.

    It assumes symmetric differences and no normal ones. nan below ``LEAST_PAIRS`` differences that
    are not 0, where it could not find anything, and where one is not finite.
    """
    if not all(map(math.isfinite, differences)):
        return math.nan
    moved = [difference for difference in differences if difference]
    if len(moved) < LEAST_PAIRS:
        return math.nan
    from scipy.stats import wilcoxon

    return float(wilcoxon(moved).pvalue)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Adjusted for several tests at once (Holm, Scandinavian Journal of Statistics 1979).

    A test that could not be made (nan) stays nan and does not count as one.
    """
    made = sorted(
        (key for key in p_values if not math.isnan(p_values[key])), key=p_values.__getitem__
    )
    adjusted = dict(p_values)
    least = 0.0
    for rank, key in enumerate(made):
        least = max(least, min(1.0, (len(made) - rank) * p_values[key]))
        adjusted[key] = least
    return adjusted


def stars(p: float) -> str:
    """``**`` below 0.01, ``*`` below 0.05, else nothing."""
    return "**" if p < 0.01 else "*" if p < 0.05 else ""
