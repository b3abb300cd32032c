"""The conclusion of a run: its embedding beside the untrained one and the backbone.

The untrained embedding is the embedding layer before the first step. A random one usually scores
lower than the features that it projects, so a run can end above it and be worse than no training.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datasets.image_set import ImageSet
from evaluation.scores import Scores, aligned, number
from evaluation.word_search import DistinctNames
from metrics import Interval, bootstrap, parse

BACKBONE = "backbone"  # in a score's name, as an evaltype: pooled features, as unit rows
HEADLINES = {"e_recall@1": "Recall@1", "recall@1": "Recall@1", "mAP@R": "mAP@R"}


class Searched(NamedTuple):
    """A way to search the images, with its scores."""

    name: str
    prefix: str  # of its scores, as in "test/embeds"
    scores: Scores

    def score(self, metric: str) -> float:
        return self.scores[f"{self.prefix}/{metric}"]

    def by_class(self, metric: str) -> Tensor:
        return self.scores.by_class[f"{self.prefix}/{metric}"]

    def has(self, metrics: Sequence[str]) -> bool:
        return all(f"{self.prefix}/{metric}" in self.scores.by_class for metric in metrics)


class Verdict(NamedTuple):
    """A run's conclusion.

    Attributes:
        rows: cells of a table: scores of each ``Searched`` and, last, what training changed.
        sentence: what they mean, and what to do if training has not helped.
    """

    rows: list[tuple[str, ...]]
    sentence: str

    def __str__(self) -> str:
        return f"{aligned(self.rows)}\n{self.sentence}"


def verdict(
    trained: Searched,
    floors: Sequence[Searched],
    images: ImageSet,
    metrics: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    untrained_flags: str,
    best_checkpoint: Callable[[str, int], Path | None] = lambda score, epoch: None,
) -> Verdict | None:
    """Conclude a run; return None if its metrics or what it began with cannot be compared.

    Args:
        floors: what training must beat; the first decides.
        images: the set that was searched.
        metrics: of the run; those in ``HEADLINES`` are compared. The first of them is always told,
            another if its change is of another kind.
        rows: ``{"epoch": int, score: float or None}`` as in metrics.jsonl.
        untrained_flags: of a run that searches as the first floor does.
        best_checkpoint: (score, epoch) -> the file kept of the epoch in which the score was
            highest, None if no such file is kept. The best epoch is told by a score with files.
    """
    by_heading: dict[str, str] = {}  # two metrics share one; the first is told
    for name, heading in HEADLINES.items():
        if name in metrics:
            by_heading.setdefault(heading, name)
    metrics = list(by_heading.values())
    floors = [floor for floor in floors if floor.has(metrics)]
    if not metrics or not floors or not trained.has(metrics):
        return None
    changes = {name: change(trained, floors[0], images, name) for name in metrics}
    set_name = trained.prefix.partition("/")[0]
    table: list[tuple[str, ...]] = [
        (f"{set_name}, in percent", *(HEADLINES[name] for name in metrics)),
        *(
            (searched.name, *(number(name, searched.score(name)) for name in metrics))
            for searched in (*floors, trained)
        ),
        (f"trained − {floors[0].name}", *(_points(*changes[name]) for name in metrics)),
    ]
    first = metrics[0]
    kinds = {name: _kind(interval) for name, (_, interval) in changes.items()}
    sentences = [
        *(
            _outcome(HEADLINES[name], *changes[name], floors[0].name)
            for name in metrics
            if name == first or kinds[name] != kinds[first]
        ),
        _highest(trained.prefix, metrics, rows, best_checkpoint),
        _remedy([kinds[name] for name in metrics], floors[0], untrained_flags),
    ]
    return Verdict(table, " ".join(filter(None, sentences)))


def change(
    trained: Searched, floor: Searched, images: ImageSet, metric: str
) -> tuple[float, Interval]:
    """Return by how much a score is above the floor's, with its 95 % interval over classes.

    The interval is that of ``metrics.bootstrap``, paired: a class that is drawn brings both of its
    scores, weighted by its queries.
    """
    by_class = trained.by_class(metric) - floor.by_class(metric)
    interval = interval_of_change(metric, by_class, images)
    return trained.score(metric) - floor.score(metric), interval


def intervals_of_changes(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], images: ImageSet, prefix: str
) -> dict[str, Interval]:
    """Return the intervals of ``change`` of all scores of a set, whose names begin with ``prefix``.

    Args:
        before, after: (C,) values by class of each score; a score that either lacks is left out.
    """
    return {
        name: interval_of_change(metric, values - before[name], images)
        for name, values in after.items()
        if name.startswith(prefix) and name in before
        if not parse(metric := name.rpartition("/")[2]).log  # not a mean over classes
    }


def interval_of_change(metric: str, by_class: Tensor, images: ImageSet) -> Interval:
    """Return the interval over classes of the mean of (C,) paired differences, by its queries."""
    labels = torch.from_numpy(images.labels)
    words_by = parse(metric).words_by
    if words_by == "words":  # each name is one query
        labels = DistinctNames.among(images.class_names).first
    elif images.queries is not None and words_by is None:
        labels = labels[torch.from_numpy(images.queries)]
    return bootstrap({metric: by_class[labels]}, labels)[metric]


def _points(value: float, interval: Interval) -> str:
    low, high = (f"{100 * end:+.2f}" for end in interval)
    bracket = "" if math.isnan(interval.low) else f" [{low}, {high}]"
    return f"{100 * value:+.2f}{bracket}"


def _kind(interval: Interval) -> int | None:
    """Return 1 for a clear rise, -1 for a clear fall, 0 for neither, None without an interval."""
    if math.isnan(interval.low):
        return None
    return (interval.low > 0) - (interval.high < 0)


def _outcome(heading: str, value: float, interval: Interval, floor: str) -> str:
    points = f"{abs(100 * value):.1f} points"
    if _kind(interval) == 1:
        return f"{heading} rose by {points} over the {floor}."
    if _kind(interval) == -1:
        return f"{heading} fell by {points} below the {floor}."
    return f"{heading} is not clearly above or below the {floor}."


def _highest(
    prefix: str,
    metrics: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    best_checkpoint: Callable[[str, int], Path | None],
) -> str:
    """Say when a score was highest, if that was not at the end."""
    metric = next((m for m in metrics if best_checkpoint(f"{prefix}/{m}", 0)), metrics[0])
    score = f"{prefix}/{metric}"
    found = [row for row in rows if row.get(score) is not None and math.isfinite(row[score])]
    if not found:
        return ""
    best = max(reversed(found), key=lambda row: row[score])
    epoch, value = best["epoch"], f"{100 * best[score]:.1f} %"
    if epoch == found[-1]["epoch"]:
        return ""
    if epoch == 0:
        return f"{HEADLINES[metric]} was highest before training, {value}."
    highest = f"{HEADLINES[metric]} was highest, {value}, after epoch {epoch}"
    if not prefix.startswith("val/"):
        return f"{highest}; choose the length on validation classes (--use_tv_split, --patience)."
    file = best_checkpoint(score, epoch)
    use = f"use {file.name}, or " if file else ""
    return f"{highest}: {use}train with --n_epochs {epoch}."


def _remedy(kinds: Sequence[int | None], floor: Searched, flags: str) -> str:
    """Say how to search with the backbone where a score fell, or none clearly rose.

    Args:
        kinds: of the changes, see ``_kind``.
    """
    helped = 1 in kinds and -1 not in kinds
    if helped or None in kinds or not floor.prefix.endswith(BACKBONE):
        return ""
    return (
        f"The {floor.name} need no training: the same command with {flags} leaves a run that "
        "searches with them."
    )
