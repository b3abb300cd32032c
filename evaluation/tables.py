"""Scores as plain text, for the end of a run, and by class as a file."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metrics import parse
from utilities.files import atomic_path

if TYPE_CHECKING:
    from datasets.image_set import ImageSet
    from evaluation.retrieval import Scores

ACCURACIES = ("linear_probe", "fewshot", "knn")
RULE = "in percent, with 95 % intervals over classes"


def is_fraction(name: str) -> bool:
    """Whether a score is in [0, 1]: the accuracies of frozen features, and metrics that say so."""
    metric = name.rpartition("/")[2]
    return metric.startswith(ACCURACIES) or parse(metric).fraction


def number(name: str, value: float, sign: str = "") -> str:
    """A score as it is printed: fractions in percent, others as they are; – for NaN.

    Args:
        name: of the score, whose last part after a slash is that of a metric.
        sign: "+" shows it of gains, too.
    """
    if math.isnan(value):
        return "–"
    if is_fraction(name):
        return f"{100 * value:{sign}.2f}"
    return f"{value:{sign}.4f}"


def table(before: "Scores", after: "Scores") -> str:
    """Scores before and after training side by side, and what has changed, in percentage points.

    A row for each name of either, in the order of ``after``; – where a value is missing or NaN.
    """
    rows = [(_rule(after), "untrained", "trained", "", "change")]
    for name in dict.fromkeys((*after, *before)):
        old, new = (scores.get(name, math.nan) for scores in (before, after))
        cells = number(name, old), number(name, new), _interval(name, after)
        rows.append((name, *cells, number(name, new - old, "+")))
    return _aligned(rows)


def listing(scores: "Scores") -> str:
    """The scores of one embedder, each with its interval."""
    rows = [(_rule(scores), "score", "")]
    rows += [(name, number(name, value), _interval(name, scores)) for name, value in scores.items()]
    return _aligned(rows)


def write_by_class(path: Path, scores: "Scores", prefix: str, images: "ImageSet") -> None:
    """A CSV file with a row for each class of a set: its name, group, images and scores.

    Args:
        prefix: of the scores that belong to the set, such as "test/".
    """
    columns = {
        name.removeprefix(prefix): values.tolist()
        for name, values in scores.by_class.items()
        if name.startswith(prefix) and len(values) == images.n_classes
    }
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "group", "images", *columns])
        for label, rows in enumerate(images.rows_by_class):
            group = images.class_groups[label] if images.class_groups else ""
            values = [column[label] for column in columns.values()]
            cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
            writer.writerow([images.class_names[label], group, len(rows), *cells])


def _rule(scores: "Scores") -> str:
    few_shot = any("/fewshot" in name for name in scores)
    return RULE + (", few-shot over episodes" if few_shot else "")


def _interval(name: str, scores: "Scores") -> str:
    """``[57.31, 60.77]``, empty where there is none."""
    if name not in scores.intervals:
        return ""
    low, high = scores.intervals[name]
    return f"[{number(name, low)}, {number(name, high)}]"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
