"""The scores of a report: in words, untrained beside trained, with the sets side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.score_words import Words, words_of
from evaluation.scores import number
from evaluation.tower_search import TEXT_SIDE, ZERO_SHOT
from evaluation.verdict import BACKBONE
from evaluation.word_search import PERMUTED, WORDS
from metrics import Interval

SIDE_BY_SIDE = 2  # sets in one table
KINDS = {
    "embeds": "Search by picture",
    "features": "Search by picture, with the backbone's features",
    WORDS: "Search by words",
    ZERO_SHOT: "Search by words with CLIP as it was published",
    TEXT_SIDE: "Search by words with the text side of the run",
    "": "Classification by frozen features",
    PERMUTED: "Control: search by permuted words, chance",
}


class Score(NamedTuple):
    """The parts of a score's name, ``<set>/<kind>/<metric>`` or ``<dataset>/<accuracy>``."""

    name: str
    set: str
    kind: str  # "" for an accuracy
    metric: str
    words: Words


class Cell(NamedTuple):
    """A score of one set, formatted; "" or – for what is missing."""

    untrained: str
    trained: str
    interval: str
    change: str
    change_interval: str  # paired
    effect: str  # "better" or "worse" if the interval of the change excludes 0, else ""


class Row(NamedTuple):
    score: Score
    cells: dict[str, Cell | None]  # by set


class Table(NamedTuple):
    """Scores of the same sets.

    Attributes:
        groups: rows by the words of their kind.
        compared: whether any score was recorded before training.
    """

    sets: list[str]
    groups: dict[str, list[Row]]
    compared: bool


def parse_name(name: str) -> Score | None:
    """Return the parts of a score's name; None if it is a loss, a speed or the like."""
    first, *rest = name.split("/")
    kind, metric = ("", *rest) if len(rest) == 1 else rest if len(rest) == 2 else ("", "")
    words = words_of(metric)
    if words is None or kind == BACKBONE:
        return None
    return Score(name, first, kind, metric, words)


def scores_in(rows: Iterable[Mapping[str, Any]]) -> list[Score]:
    """Return the scores of ``{"epoch": int, name: value}``, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [score for score in map(parse_name, names) if score]


def score_tables(
    rows: Sequence[Mapping[str, Any]],
    intervals: Mapping[str, Interval],
    changes: Mapping[str, Interval],
    kinds: Iterable[str],
) -> list[Table]:
    """Return tables of the scores of these ``KINDS``, with at most two sets side by side each.

    Args:
        rows: as in metrics.jsonl, oldest first.
        intervals, changes: of scores and of their changes since epoch 0; may be empty.
    """
    scores = scores_in(rows)
    found: list[Table] = []
    of_kinds = [score for kind in kinds for score in scores if score.kind == kind]
    for accuracies in (False, True):
        shown = [score for score in of_kinds if (score.kind == "") == accuracies]
        sets = list(dict.fromkeys(score.set for score in scores if score in shown))
        for start in range(0, len(sets), SIDE_BY_SIDE):
            beside = sets[start : start + SIDE_BY_SIDE]
            chosen = [score for score in shown if score.set in beside]
            found.append(_table(beside, chosen, rows, intervals, changes))
    return found


def kinds_in(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the kinds of the recorded scores, in the order of ``KINDS`` and then of appearance."""
    recorded = dict.fromkeys(score.kind for score in scores_in(rows))
    return [kind for kind in dict.fromkeys((*KINDS, *recorded)) if kind in recorded]


def _table(
    sets: list[str],
    scores: Sequence[Score],
    rows: Sequence[Mapping[str, Any]],
    intervals: Mapping[str, Interval],
    changes: Mapping[str, Interval],
) -> Table:
    groups: dict[str, dict[str, Row]] = {}
    for score in scores:
        group = groups.setdefault(KINDS.get(score.kind, score.kind), {})
        row = group.setdefault(score.metric, Row(score, dict.fromkeys(sets)))
        row.cells[score.set] = _cell(score, rows, intervals, changes)
    cells = [
        cell for group in groups.values() for row in group.values() for cell in row.cells.values()
    ]
    compared = any(cell.untrained != "–" for cell in cells if cell)
    return Table(sets, {name: list(group.values()) for name, group in groups.items()}, compared)


def _cell(
    score: Score,
    rows: Sequence[Mapping[str, Any]],
    intervals: Mapping[str, Interval],
    changes: Mapping[str, Interval],
) -> Cell:
    """Format the last value of a score beside that of epoch 0."""
    name = score.name
    values = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    trained = values[-1][1] if values else math.nan
    untrained = values[0][1] if len(values) > 1 and values[0][0] == 0 else math.nan
    change = changes.get(name, Interval(math.nan, math.nan))
    effect = ""
    if change.low > 0 or change.high < 0:
        effect = {1: "better", -1: "worse", 0: ""}[
            score.words.better * (1 if change.low > 0 else -1)
        ]
    return Cell(
        number(name, untrained),
        number(name, trained),
        _range(name, intervals.get(name)),
        number(name, trained - untrained, "+"),
        _range(name, change, "+"),
        effect if score.kind != PERMUTED else "",
    )


def _range(name: str, interval: Interval | None, sign: str = "") -> str:
    bounds = [number(name, bound, sign) for bound in interval or ()]
    return "" if "–" in bounds else " to ".join(bounds)


def by_protocol(
    rows: Iterable[Mapping[str, Any]], protocols: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the names of the scores of each protocol, the most common protocol first."""
    measured: dict[str, list[str]] = {}
    for score in scores_in(rows):
        if score.name in protocols:
            measured.setdefault(protocols[score.name], []).append(score.name)
    return dict(sorted(measured.items(), key=lambda item: -len(item[1])))


def word_scores(
    rows: Sequence[Mapping[str, Any]], intervals: Mapping[str, Interval]
) -> list[dict[str, Any]]:
    """Return the scores of search by words in the first set, each with that of permuted words."""
    scores = [score for score in scores_in(rows) if score.kind == WORDS]
    return [
        {
            "score": score,
            "words": _cell(score, rows, intervals, {}),
            "permuted": _cell(control, rows, intervals, {}),
        }
        for score in scores
        if score.set == scores[0].set
        if (control := parse_name(f"{score.set}/{PERMUTED}/{score.metric}"))
    ]
