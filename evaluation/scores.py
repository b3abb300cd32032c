"""Scores by name, each with its protocol, and how they are printed and written to files."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from datasets.image_set import ImageSet
from metrics import Interval, parse
from utilities.console import columns, padded
from utilities.files import atomic_path

T = TypeVar("T")

ACCURACIES = ("linear_probe", "fewshot", "knn")
EMA = "ema_"  # before the output of the embedder, in scores of averaged weights
OVER_IMAGES = "over images"  # in the protocol of a few-shot score of as many classes as ways


class Scores(dict[str, float]):
    """Scores by name, with how each was measured, its confidence interval and its values by class.

    Values are fractions, except for words, distances and the like (see ``metrics``), and NaN if no
    query counts. Only means over queries have an interval and a value for each class.

    Attributes:
        protocols: such as "cub200.test n=5924 d=128 euclidean exact seed=2"; with separate queries
            their number comes first, "inshop.test q=14218 n=12612 d=...".
        intervals: 95 % confidence interval over the test classes, NaN for one class alone.
        by_class: (C,) float64, NaN for a class of which no query counts.
    """

    def __init__(
        self,
        values: Mapping[str, float],
        protocols: Mapping[str, str],
        intervals: Mapping[str, Interval] | None = None,
        by_class: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(values)
        self.protocols = dict(protocols)
        self.intervals = dict(intervals or {})
        self.by_class = dict(by_class or {})

    def add(self, other: "Scores", prefix: str = "") -> None:
        """Add other scores, with ``prefix`` in front of their names."""
        self.update({prefix + name: value for name, value in other.items()})
        for field in ("protocols", "intervals", "by_class"):
            added = getattr(other, field).items()
            getattr(self, field).update({prefix + name: value for name, value in added})

    def of_average(self, evaltypes: Sequence[str]) -> "Scores":
        """Return the scores of these outputs, named as those of averaged weights.

        ``test/embeds/e_recall@1`` becomes ``test/ema_embeds/e_recall@1``.
        """

        def renamed(values: Mapping[str, T]) -> dict[str, T]:
            paths = {name: name.rsplit("/", 2) for name in values if name.count("/") == 2}
            return {
                f"{images}/{EMA}{kind}/{metric}": values[name]
                for name, (images, kind, metric) in paths.items()
                if kind in evaltypes
            }

        return Scores(
            renamed(self),
            renamed(self.protocols),
            renamed(self.intervals),
            renamed(self.by_class),
        )


def is_fraction(name: str) -> bool:
    """Return whether a score is a fraction in [0, 1]: an accuracy, or a metric that is one."""
    metric = name.rpartition("/")[2]
    return metric.startswith(ACCURACIES) or parse(metric).fraction


def number(name: str, value: float, sign: str = "") -> str:
    """Format a score: fractions in percent, others unchanged, NaN as –; "+" signs gains, too."""
    if math.isnan(value):
        return "–"
    if is_fraction(name):
        return f"{100 * value:{sign}.2f}"
    return f"{value:{sign}.4f}"


def table(before: Mapping[str, float], after: Scores) -> str:
    """Format scores before and after training side by side, with the change in percentage points.

    Each name of either has a row, in the order of ``after``; – stands for a missing value or NaN.
    """
    rows = [(_heading(after), "untrained", "trained", "", "change")]
    for name in dict.fromkeys((*after, *before)):
        old, new = (scores.get(name, math.nan) for scores in (before, after))
        change = number(name, new - old, "+")
        rows.append((name, number(name, old), number(name, new), _interval(name, after), change))
    return aligned(rows)


def listing(scores: Scores) -> str:
    """Format the scores of one embedder, each with its interval."""
    rows = [(_heading(scores), "score", "")]
    rows += [(name, number(name, value), _interval(name, scores)) for name, value in scores.items()]
    return aligned(rows)


def write_by_class(path: Path, scores: Scores, prefix: str, images: ImageSet) -> None:
    """Write a CSV file with the classes of a set, whose scores begin with ``prefix``."""
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


def of_intervals(protocols: Mapping[str, str]) -> str:
    """Return over what scores of these protocols have their intervals."""
    over_images = any(OVER_IMAGES in protocol for protocol in protocols.values())
    return "over classes" + f", few-shot {OVER_IMAGES} of the same classes" * over_images


def _heading(scores: Scores) -> str:
    return f"in percent, with 95 % intervals {of_intervals(scores.protocols)}"


def _interval(name: str, scores: Scores) -> str:
    """Return ``[57.31, 60.77]``; empty if there is no interval or it is NaN."""
    low, high = scores.intervals.get(name, (math.nan, math.nan))
    return "" if math.isnan(low) else f"[{number(name, low)}, {number(name, high)}]"


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows of cells as a table with a rule below the first; numbers to the right."""
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            padded(cell, width, right=place > 0)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(columns, lines)), *lines[1:]])
