"""The learning curves of a report: one panel for a metric, with all sets on one axis."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.report_scores import Score, scores_in
from evaluation.scores import is_fraction
from evaluation.verdict import BACKBONE, HEADLINES
from evaluation.word_search import PERMUTED, WORDS

PANELS = 20  # at most
LINES = 6  # in a panel, at most
POINTS = 120  # of a line
BOX = (260, 150)  # of a panel with its ticks
LEFT, TOP, WIDTH, HEIGHT = 38, 8, 214, 118  # of its plot
LEAST_SPAN = 2  # of an axis in percent: noise must not fill a panel
LOSS = "train/loss"

Values = list[tuple[int, float]]  # by epoch


class Line(NamedTuple):
    """One recorded value over the epochs, in the coordinates of its panel.

    Attributes:
        style: 0 for the set that the run is judged by, 1 and more for others, -1 for a control.
    """

    name: str
    style: int
    points: list[tuple[float, float]]
    last: str


class Mark(NamedTuple):
    """A place on an axis, or a height with a name, or the best epoch."""

    x: float
    y: float
    label: str


class Panel(NamedTuple):
    heading: str
    meaning: str
    metric: str  # as a flag takes it
    lines: list[Line]
    levels: list[Mark]  # dashed: what was there before training
    best: Mark | None  # of the first line
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    first: bool  # whether to show it at once
    label: str  # for a reader who does not see it


class Series(NamedTuple):
    name: str
    style: int
    values: Values


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return the panels of what has two values or more, those to be shown first in front.

    Speeds and shares of time are left out. Words and permuted words share a panel.
    """
    grouped: dict[tuple[str, str], list[Score]] = {}
    for score in scores_in(rows):
        kind = WORDS if score.kind == PERMUTED else score.kind
        grouped.setdefault((kind, score.metric), []).append(score)
    front = _front(list(grouped))
    found = [_of_scores(scores, rows, key in front) for key, scores in grouped.items()]
    shown = [panel for panel in (*found, _of_losses(rows)) if panel]
    return sorted(shown, key=lambda panel: not panel.first)[:PANELS]


def _front(keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the kinds and metrics to show at once: what verdicts compare, the first of words."""
    kinds = [kind for kind, _ in keys if kind not in (WORDS, PERMUTED)]
    headlines = [key for key in keys if key[0] == kinds[0] and key[1] in HEADLINES] if kinds else []
    by_words = [key for key in keys if key[0] == WORDS]
    return {*(headlines or keys[:1]), *by_words[:1]}


def _of_scores(
    scores: Sequence[Score], rows: Sequence[Mapping[str, Any]], first: bool
) -> Panel | None:
    score = scores[0]
    scale = 100 if is_fraction(score.name) else 1
    styles = {name: style for style, name in enumerate(dict.fromkeys(s.set for s in scores))}
    series = [
        Series(f"{s.set}, words permuted", -1, values)
        if s.kind == PERMUTED
        else Series(s.set, styles[s.set], values)
        for s in scores
        if len(values := _values(rows, s.name, scale)) > 1
    ]
    if not series:
        return None
    levels = {}
    if score.kind not in (WORDS, PERMUTED):
        if series[0].values[0][0] == 0:
            levels["untrained"] = series[0].values[0][1]
        if floor := _values(rows, f"{score.set}/{BACKBONE}/{score.metric}", scale):
            levels["backbone's features"] = floor[0][1]
    unit = ", in percent" if scale == 100 else ""
    texts = score.words.heading + unit, score.words.meaning, score.metric
    return _panel(texts, series, levels, score.words.better, first, LEAST_SPAN * (scale == 100))


def _of_losses(rows: Sequence[Mapping[str, Any]]) -> Panel | None:
    """Return the loss and its terms in one panel; a term that is the whole loss is left out."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n.startswith(LOSS)]
    series: list[Series] = []
    for name in names:
        values = _values(rows, name, 1)
        if len(values) > 1 and all(values != other.values for other in series):
            series.append(Series(name.removeprefix("train/"), len(series), values))
    texts = "Loss", "mean over the batches of an epoch", LOSS
    return _panel(texts, series, {}, 0, True) if series else None


def _values(rows: Iterable[Mapping[str, Any]], name: str, scale: float) -> Values:
    """Return epochs and finite values of a name, at most ``POINTS``; the last is among them."""
    found = [
        (row["epoch"], scale * row[name])
        for row in rows
        if row.get(name) is not None and math.isfinite(row[name])
    ]
    if len(found) > POINTS:
        places = np.linspace(0, len(found) - 1, POINTS).round().astype(int)
        found = [found[place] for place in places]
    return found


def _panel(
    texts: tuple[str, str, str],
    series: Sequence[Series],
    levels: Mapping[str, float],
    better: int,
    first: bool,
    least_span: float = 0,
) -> Panel:
    """Place lines, levels and ticks in one box; all share its axes."""
    series = series[:LINES]
    values = [value for line in series for _, value in line.values] + [*levels.values()]
    epochs = sorted({epoch for line in series for epoch, _ in line.values})
    y_labels = ticks(min(values), max(values), least_span)
    bottom, top = min(y_labels), max(y_labels)

    def x(epoch: float) -> float:
        return round(LEFT + WIDTH * (epoch - epochs[0]) / (epochs[-1] - epochs[0]), 1)

    def y(value: float) -> float:
        return round(TOP + HEIGHT * (top - value) / (top - bottom), 1)

    def shown(value: float) -> str:
        return f"{value:.1f}" if least_span else f"{value:.3g}"

    best, text = None, ""
    if better:
        epoch, value = max(reversed(series[0].values), key=lambda at: better * at[1])
        best = Mark(x(epoch), y(value), f"best {shown(value)} after epoch {epoch}")
        text = f"; {best.label}"
    ends = [
        f"{line.name} {shown(line.values[0][1])} to {shown(line.values[-1][1])}" for line in series
    ]
    return Panel(
        *texts,
        lines=[
            Line(s.name, s.style, [(x(e), y(v)) for e, v in s.values], shown(s.values[-1][1]))
            for s in series
        ],
        levels=[Mark(LEFT, y(value), f"{name} {shown(value)}") for name, value in levels.items()],
        best=best,
        x_ticks=[Mark(x(e), TOP + HEIGHT, str(e)) for e in _epoch_ticks(epochs)],
        y_ticks=[Mark(LEFT, y(value), label) for value, label in y_labels.items()],
        first=first,
        label=f"{texts[0]}, epoch {epochs[0]} to {epochs[-1]}: {', '.join(ends)}{text}",
    )


def ticks(low: float, high: float, least_span: float = 0) -> dict[float, str]:
    """Return 3 to 7 round values with their labels; the outer ones enclose ``low`` and ``high``."""
    span = max(high - low, least_span, abs(high) * 1e-3, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 4 * 0.999)
    start, stop = math.floor(low / step + 1e-6), math.ceil(max(high, low + span) / step - 1e-6)
    digits = max(0, -math.floor(math.log10(step) + 1e-6))
    return {n * step: f"{n * step:.{digits}f}" for n in range(start, stop + 1)}


def _epoch_ticks(epochs: Sequence[int]) -> list[int]:
    """Return at most 6 evenly spaced epochs, from the first."""
    step = math.ceil((epochs[-1] - epochs[0]) / 5)
    round_step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, step) if s >= step)
    return list(range(epochs[0], epochs[-1] + 1, round_step))
