"""Means of groups over their seeds, with confidence intervals and significance tests."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from utilities.results.runs import Groups, Seed

MIN_PAIRS = 6  # with fewer, no signed-rank test reaches p < 0.05: 2 / 2^5 = 0.0625

K = TypeVar("K")


class Difference(NamedTuple):
    """Mean paired difference of a group from another, over the seeds that both have.

    p-values are two-sided, before and after Holm's correction over the groups compared in one
    score; nan where no test is possible.
    """

    reference: str
    mean: float
    half: float  # of the 95 % interval
    n: int
    t: float = math.nan
    t_holm: float = math.nan
    wilcoxon: float = math.nan
    wilcoxon_holm: float = math.nan


class Summary(NamedTuple):
    """Mean of a group in one score over its seeds, and half-width of the 95 % interval."""

    mean: float
    half: float
    seeds: list[Seed]
    epochs: list[int]  # distinct, ascending
    difference: Difference | None = None


Summaries = dict[str, dict[str, Summary]]  # group, then score


def summarise(groups: Groups, names: Sequence[str], references: Mapping[str, str]) -> Summaries:
    """Return a summary of each group in each score; ``references`` maps groups to compare."""
    summaries: Summaries = {group: {} for group in groups}
    for name in names:
        differences = _differences(groups, name, references)
        for group, by_seed in groups.items():
            mean, half = interval([result.scores[name] for result in by_seed.values()])
            epochs = sorted({result.epoch for result in by_seed.values()})
            seeds = sorted(by_seed, key=str)
            summaries[group][name] = Summary(mean, half, seeds, epochs, differences.get(group))
    return summaries


def _differences(groups: Groups, name: str, references: Mapping[str, str]) -> dict[str, Difference]:
    found = {}
    for group, reference in references.items():
        ours, theirs = groups[group], groups[reference]
        changes = [
            ours[seed].scores[name] - theirs[seed].scores[name] for seed in ours if seed in theirs
        ]
        if changes:
            p = {"t": paired_t(changes), "wilcoxon": signed_rank(changes)}
            found[group] = Difference(reference, *interval(changes), len(changes), **p)
    t_holm = holm({group: difference.t for group, difference in found.items()})
    wilcoxon_holm = holm({group: difference.wilcoxon for group, difference in found.items()})
    return {
        group: difference._replace(t_holm=t_holm[group], wilcoxon_holm=wilcoxon_holm[group])
        for group, difference in found.items()
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % confidence interval (Student's t), or nan."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 0.975))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def paired_t(differences: Sequence[float]) -> float:
    """Return p of the two-sided paired t-test (Student, Biometrika 1908), or nan."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if not deviation:
        return 0.0 if mean else 1.0
    from scipy.special import stdtr

    n = len(differences)
    return 2 * float(stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))


def signed_rank(differences: Sequence[float]) -> float:
    """Return p of the two-sided signed-rank test (Wilcoxon, Biometrics Bulletin 1945), or nan."""
    changed = [difference for difference in differences if difference]
    if not all(map(math.isfinite, differences)) or len(changed) < MIN_PAIRS:
        return math.nan
    from scipy.stats import wilcoxon

    return float(wilcoxon(changed).pvalue)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Return p-values corrected for multiple tests (Holm, Scandinavian Journal of Statistics 1979).

    nan, a test that was not possible, stays and does not count.
    """
    tested = sorted(
        (key for key in p_values if not math.isnan(p_values[key])), key=p_values.__getitem__
    )
    corrected = dict(p_values)
    lowest = 0.0
    for rank, key in enumerate(tested):
        lowest = max(lowest, min(1.0, (len(tested) - rank) * p_values[key]))
        corrected[key] = lowest
    return corrected


def stars(p: float) -> str:
    """Return ``**`` below 0.01, ``*`` below 0.05, else nothing."""
    return "**" if p < 0.01 else "*" if p < 0.05 else ""
