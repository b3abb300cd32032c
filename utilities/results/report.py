"""The table of one dataset: its scores, groups, comparisons and epochs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from utilities.registry import closest_first
from utilities.results.runs import (
    Groups,
    Result,
    by_group,
    check_scores,
    is_evaluation,
    mean_before_training,
)
from utilities.results.significance import Summaries, summarise
from utilities.results.tables import Table, score_table

# Default scores, on the validation classes if there are none on the test classes.
HEADLINES = (
    "e_recall@1", "mAP@R", "wrong_word_similarity@10", "wrong_group_share@10",
    "words/word_recall@1", "words/word_mAP",
)  # fmt: skip


class Selection(NamedTuple):
    scores: Sequence[str] = ()  # NAME or NAME=HEADING; empty for the headlines
    groups: Sequence[str] = ()  # GROUP or GROUP=LABEL, in row order; empty for all
    baseline: str | None = None  # the group that the others are compared with
    versus: str | None = None  # suffix; a group is compared with the one whose name adds it
    sort: bool = False  # rows by the first score, highest first

    def needs(self, group: str) -> bool:
        names = [group]
        if self.versus and group.endswith(self.versus):
            names.append(group.removesuffix(self.versus))
        return (
            not self.groups
            or group == self.baseline
            or any(e == name or e.startswith(f"{name}=") for e in self.groups for name in names)
        )


class Report(NamedTuple):
    """A table and the groups, labels (by group) and headings (by score) that it shows."""

    table: Table
    groups: Groups
    summaries: Summaries
    rows: dict[str, str]
    scores: dict[str, str]


def report(results: Sequence[Result], selection: Selection, rule: str, title: str = "") -> Report:
    """Return the table of the runs of one dataset, whose epochs ``rule`` chose."""
    suffix = selection.versus or ""
    groups = by_group(results)
    scores = _labelled(selection.scores or headlines(results), list(results[0].scores))
    check_scores(results, scores)
    pairs = _references(groups, selection)
    known = list(dict.fromkeys(pairs.values())) if suffix else list(groups)
    rows = _labelled(selection.groups or known, list(groups))
    for group in rows:
        if group not in known:
            raise ValueError(
                f"--groups {group} is not among the groups; closest first: "
                + ", ".join(closest_first(group, known))
            )
    pairs = {g: other for g, other in pairs.items() if g in rows or (suffix and other in rows)}
    summaries = summarise(groups, list(scores), pairs)
    if selection.sort or (suffix and not selection.groups):
        first = next(iter(scores))
        rows = dict(sorted(rows.items(), key=lambda row: -summaries[row[0]][first].mean))
    chosen, epochs = how_chosen(rule, results)
    notes = _notes(chosen, results, list(scores))
    table = score_table(
        *(title, summaries, scores, rows),
        suffix=suffix,
        epochs=epochs,
        notes=notes,
        floors=_floors(results, list(scores)),
    )
    shown = {}
    for group, label in rows.items():
        shown[group] = label
        if suffix:
            shown[group + suffix] = f"{label} {suffix.strip('_')}"
    return Report(table, groups, {group: summaries[group] for group in shown}, shown, scores)


def headlines(results: Sequence[Result]) -> list[str]:
    """Return the default scores, among those that all runs have."""
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
    """Return the rule in words, and the heading of a column of epochs (empty if not needed)."""
    epochs = sorted({result.epoch for result in results})
    by = ", ".join(dict.fromkeys(result.by for result in results))
    if rule == "validation":
        return f"at each run's best epoch by {by}", "best epoch by validation"
    if rule == "test":
        text = f"at each run's best epoch on test classes, by {by}: optimistic"
        return text, "best epoch on test classes: optimistic"
    if len(epochs) > 1:
        return "after the last epoch of each run", "epochs"
    return f"after {'the last epoch, ' if rule == 'last' else 'epoch '}{epochs[0]}", ""


def _notes(chosen: str, results: Sequence[Result], scores: Sequence[str]) -> list[str]:
    notes = [f"Mean ± 95 % confidence interval (Student's t) over seeds, in percent, {chosen}."]
    by_validation = any(result.by.startswith("val/") and result.choices > 1 for result in results)
    if by_validation and any(name.startswith("val/") for name in scores):
        notes.append("Validation scores are optimistic: they chose the epoch.")
    not_finite = [
        f"{name} of {result.run.name}"
        for name in scores
        for result in results
        if math.isnan(result.scores[name])
    ]
    if not_finite:
        notes.append(f"Not finite: {', '.join(not_finite)}; its group has no mean.")
    return notes


def _floors(results: Sequence[Result], scores: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the mean scores that all runs began with, and of their backbones, by title."""
    floors: dict[str, dict[str, float]] = {}
    for score in scores:
        means = mean_before_training([result.run.rows for result in results], score)
        for title, mean in means.items():
            floors.setdefault(title, {})[score] = mean
    return floors


def _labelled(entries: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return ``NAME`` or ``NAME=LABEL`` as name to label; a known name may itself contain ``=``."""
    pairs = [(entry, "", "") if entry in known else entry.partition("=") for entry in entries]
    return {name: label or name for name, _, label in pairs}


def _references(groups: Groups, selection: Selection) -> dict[str, str]:
    baseline, suffix = selection.baseline, selection.versus
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
