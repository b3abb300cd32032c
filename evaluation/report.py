"""Scores as plain text, for the end of a run."""

import math
from collections.abc import Mapping


def table(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    columns: tuple[str, str] = ("untrained", "trained"),
) -> str:
    """Two sets of scores side by side, in percent, and what has changed, in percentage points.

    A row for each name of either, in the order of ``after``; – where a value is missing or NaN.
    """
    rows = [("in percent", *columns, "change")]
    for name in dict.fromkeys((*after, *before)):
        old, new = (scores.get(name, math.nan) for scores in (before, after))
        rows.append((name, _cell(old, ".2f"), _cell(new, ".2f"), _cell(new - old, "+.2f")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(100 * value, form)
