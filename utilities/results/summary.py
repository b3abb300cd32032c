"""Means, intervals and differences of groups of runs."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from utilities.results.runs import Groups, Seed
from utilities.results.significance import holm, interval, paired_t, signed_rank


class Difference(NamedTuple):
    """A group's mean difference from another, over the seeds that both have.

    Runs of one seed see the same batches, which makes paired differences tighter. p-values are
    two-sided, plain and after Holm's correction over the groups that were compared in one score;
    nan where no test could be made.
    """

    reference: str
    mean: float
    half: float
    n: int
    t: float = math.nan
    t_holm: float = math.nan
    wilcoxon: float = math.nan
    wilcoxon_holm: float = math.nan


class Summary(NamedTuple):
    """A group in one score: mean over its seeds and half-width of the 95 % interval."""

    mean: float
    half: float
    seeds: list[Seed]
    epochs: list[int]  # distinct, ascending
    difference: Difference | None = None


Summaries = dict[str, dict[str, Summary]]  # group, then score


def summarise(groups: Groups, names: Sequence[str], references: Mapping[str, str]) -> Summaries:
    """Each group in each score, and its difference from its reference.

    Args:
        references: group to the group that it is compared with.
    """
    summaries: Summaries = {}
    for group, by_seed in groups.items():
        epochs = sorted({result.epoch for result in by_seed.values()})
        summaries[group] = {
            name: Summary(
                *interval([result.scores[name] for result in by_seed.values()]),
                sorted(by_seed, key=str),
                epochs,
            )
            for name in names
        }
    for name in names:
        for group, difference in _differences(groups, name, references).items():
            summaries[group][name] = summaries[group][name]._replace(difference=difference)
    return summaries


def _differences(groups: Groups, name: str, references: Mapping[str, str]) -> dict[str, Difference]:
    found = {}
    for group, reference in references.items():
        seeds = [seed for seed in groups[group] if seed in groups[reference]]
        if not seeds:
            continue
        changes = [
            groups[group][seed].scores[name] - groups[reference][seed].scores[name]
            for seed in seeds
        ]
        mean, half = interval(changes)
        found[group] = Difference(
            reference, mean, half, len(seeds), t=paired_t(changes), wilcoxon=signed_rank(changes)
        )
    t_holm = holm({group: difference.t for group, difference in found.items()})
    ranks_holm = holm({group: difference.wilcoxon for group, difference in found.items()})
    return {
        group: difference._replace(t_holm=t_holm[group], wilcoxon_holm=ranks_holm[group])
        for group, difference in found.items()
    }
