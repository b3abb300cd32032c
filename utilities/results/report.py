"""One table of a paper: which scores and groups, compared with what, at which epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from utilities.registry import closest_first
from utilities.results.runs import Groups, Result, by_group, check_scores, is_evaluation
from utilities.results.summary import Summaries, summarise
from utilities.results.tables import Table, group_table, pair_table

# Of a table that names no scores; of the validation classes where the test classes have none.
HEADLINES = ("e_recall@1", "mAP@R", "wrong_word_similarity@10", "wrong_group_share@10")


class Wanted(NamedTuple):
    """What a table is asked to show.

    Attributes:
        scores: ``NAME`` or ``NAME=HEADING``; none for the headlines.
        groups: ``GROUP`` or ``GROUP=NAME``, in the order of the rows; none for all.
        baseline: the group that the others are compared with.
        versus: each group is compared with the one whose name adds this.
        sort: rows by the first score, the highest first.
    """

    scores: Sequence[str] = ()
    groups: Sequence[str] = ()
    baseline: str | None = None
    versus: str | None = None
    sort: bool = False

    def has(self, group: str) -> bool:
        """Whether the runs of a group are needed."""
        names = [group]
        if self.versus and group.endswith(self.versus):
            names.append(group.removesuffix(self.versus))
        return (
            not self.groups
            or group == self.baseline
            or any(e == name or e.startswith(f"{name}=") for e in self.groups for name in names)
        )


class Report(NamedTuple):
    """A table, what is in it, and notes on what to mind.

    Attributes:
        summaries: of the groups that are shown.
        rows: group to its name, of the groups that are shown.
        scores: name to heading.
    """

    table: Table
    groups: Groups
    summaries: Summaries
    rows: dict[str, str]
    scores: dict[str, str]


def report(results: Sequence[Result], wanted: Wanted, rule: str, title: str = "") -> Report:
    """The table of runs of one dataset.

    Args:
        rule: how the epochs of ``results`` were chosen.

    Raises:
        ValueError: a group or score that is asked for is not there.
    """
    groups = by_group(results)
    scores = _labelled(wanted.scores or headlines(results), list(results[0].scores))
    check_scores(results, scores)
    pairs = _references(groups, wanted)
    known = list(dict.fromkeys(pairs.values())) if wanted.versus else list(groups)
    rows = _labelled(wanted.groups or known, list(groups))
    for group in rows:
        if group not in known:
            raise ValueError(
                f"--groups {group} is not among the groups; closest first: "
                + ", ".join(closest_first(group, known))
            )
    pairs = {
        g: other for g, other in pairs.items() if g in rows or (wanted.versus and other in rows)
    }
    summaries = summarise(groups, list(scores), pairs)
    if wanted.sort or (wanted.versus and not wanted.groups):
        first = next(iter(scores))
        rows = dict(sorted(rows.items(), key=lambda row: -summaries[row[0]][first].mean))
    said, epochs = how_chosen(rule, results)
    notes = _notes(said, results, scores)
    if not wanted.versus:
        table = group_table(title, summaries, scores, rows, epochs=epochs, notes=notes)
        shown = rows
    else:
        suffix = wanted.versus
        table = pair_table(title, summaries, scores, rows, suffix, epochs=epochs, notes=notes)
        both = ((g, g + suffix, label) for g, label in rows.items())
        shown = {
            name: label
            for g, other, label in both
            for name, label in ((g, label), (other, f"{label} {suffix.strip('_')}"))
        }
    return Report(table, groups, {group: summaries[group] for group in shown}, shown, scores)


def headlines(results: Sequence[Result]) -> list[str]:
    """The scores of a table that names none: of those that all runs have.

    Raises:
        ValueError: they have none in common.
    """
    shared = [name for name in results[0].scores if all(name in r.scores for r in results)]
    for classes in ("test/", "val/"):
        own = [name for name in shared if name.startswith(classes)]
        found = [name for base in HEADLINES for name in own if name.endswith(f"/{base}")]
        if found:
            return found
    names = [name for name in shared if is_evaluation(name) and not name.startswith("train/")]
    if not names:
        raise ValueError("the runs have no score in common; give --scores, or other runs")
    return names


def how_chosen(rule: str, results: Sequence[Result]) -> tuple[str, str]:
    """What a caption says of the epochs, and the heading of their column (empty: none)."""
    epochs = sorted({result.epoch for result in results})
    by = ", ".join(dict.fromkeys(result.by for result in results))
    if rule == "validation":
        return f"at each run's best epoch by {by}", "best epoch by validation"
    if rule == "test":
        said = f"at each run's best epoch on test classes, by {by}: optimistic"
        return said, "best epoch on test classes: optimistic"
    if len(epochs) > 1:
        return "after the last epoch of each run", "epochs"
    return f"after {'the last epoch, ' if rule == 'last' else 'epoch '}{epochs[0]}", ""


def _notes(said: str, results: Sequence[Result], scores: Mapping[str, str]) -> list[str]:
    """What stands below a table."""
    notes = [f"Mean ± 95 % confidence interval (Student's t) over seeds, in percent, {said}."]
    chosen = any(result.by.startswith("val/") and result.choices > 1 for result in results)
    if chosen and any(name.startswith("val/") for name in scores):
        notes.append("Validation scores are optimistic: they chose the epoch.")
    broken = [
        f"{name} of {result.run.name}"
        for name in scores
        for result in results
        if math.isnan(result.scores[name])
    ]
    if broken:
        notes.append(f"No finite number: {', '.join(broken)}; its group has no mean.")
    return notes


def _labelled(entries: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """``NAME`` or ``NAME=LABEL`` as name to label; a known name may hold ``=`` itself."""
    pairs = [(entry, "", "") if entry in known else entry.partition("=") for entry in entries]
    return {name: label or name for name, _, label in pairs}


def _references(groups: Groups, wanted: Wanted) -> dict[str, str]:
    """Group to the group that it is compared with.

    Raises:
        ValueError: there is nothing to compare with.
    """
    baseline, suffix = wanted.baseline, wanted.versus
    if baseline and baseline not in groups:
        raise ValueError(f"--baseline {baseline} is not among the groups: {', '.join(groups)}")
    if baseline:
        return {group: baseline for group in groups if group != baseline}
    pairs = {group + suffix: group for group in groups if suffix and group + suffix in groups}
    if suffix and not pairs:
        raise ValueError(
            f"--versus {suffix}: no group's name is another's with that suffix; groups: "
            + ", ".join(groups)
        )
    return pairs
