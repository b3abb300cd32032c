"""Tables as Markdown, LaTeX (booktabs) and CSV.

Markdown and LaTeX print fractions in percent with two decimals; CSV prints scores as recorded.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from utilities.results.runs import is_fraction
from utilities.results.significance import Summaries, Summary, stars

FORMATS = ("markdown", "csv", "latex")

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$",
    "≥": r"$\geq$", **{sign: f"\\{sign}" for sign in "_%&#${}"},
}  # fmt: skip

MAX_NAMED = 4  # groups that a note lists by name

COLUMNS = (
    "dataset", "group", "score", "epoch_by", "epochs", "mean", "half_width", "n", "seeds",
    "versus", "difference", "difference_half_width", "n_pairs", "p_t", "p_t_holm",
    "p_wilcoxon", "p_wilcoxon_holm",
)  # fmt: skip


class Number(NamedTuple):
    """A mean or a difference as printed."""

    mean: float  # in percent if the score is a fraction
    half: float  # of the interval, in the same unit; may be nan
    digits: int  # after the decimal point
    signed: bool = False  # print + before a positive mean
    marks: str = ""  # significance stars
    best: bool = False  # of its score in the table

    @property
    def text(self) -> str:
        return f"{self.mean:{'+' if self.signed else ''}.{self.digits}f}"


Cell = str | tuple[Number, ...]  # a second number is printed in brackets


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str]


def score_table(
    title: str,
    summaries: Summaries,
    scores: Mapping[str, str],
    rows: Mapping[str, str],
    *,
    suffix: str = "",
    epochs: str = "",
    notes: Sequence[str] = (),
    floors: Mapping[str, Mapping[str, float]] | None = None,
) -> Table:
    """Return a table with one row per group, below those of ``floors``: scores by title.

    A score takes one column: the mean, and in brackets its difference from the reference. With
    ``suffix`` it takes three: the group, the group whose name adds the suffix, and the change.
    ``epochs`` heads a column of epochs, if not empty.
    """
    shown = [name for group in rows for name in dict.fromkeys((group, group + suffix))]
    best = _best_means(summaries, shown, scores)
    lines: list[list[Cell]] = []
    for label, floor in (floors or {}).items():
        line: list[Cell] = [label, *[""] * (bool(epochs) + 1)]
        for name in scores:
            line.append((_number(name, floor[name], math.nan),) if name in floor else "")
            line += ["", ""] if suffix else []
        lines.append(line)
    for group, label in rows.items():
        one, other = summaries[group], summaries[group + suffix]
        first, its_pair = (next(iter(summary.values())) for summary in (one, other))
        line = [label, str(len({*first.seeds} & {*its_pair.seeds}))]
        if epochs:
            line.append("/".join(map(str, first.epochs)))
        for name in scores:
            mean, change = _mean(name, one[name], best), _change(name, other[name])
            if suffix:
                line += [(mean,), (_mean(name, other[name], best),), change or ""]
            else:
                line.append((mean, *change))
        lines.append(line)
    extra = (suffix.strip("_"), "change") if suffix else ()
    headings = [cell for heading in scores.values() for cell in (heading, *extra)]
    return Table(
        title,
        ["group", "seeds", *([epochs] if epochs else []), *headings],
        lines,
        [*notes, *_notes_on_differences(summaries, [group + suffix for group in rows])],
    )


def _number(name: str, mean: float, half: float) -> Number:
    return Number(100 * mean, 100 * half, 2) if is_fraction(name) else Number(mean, half, 4)


def _mean(name: str, summary: Summary, best: Mapping[str, str]) -> Number:
    number = _number(name, summary.mean, summary.half)
    return number._replace(best=number.text == best.get(name))


def _change(name: str, summary: Summary) -> tuple[Number, ...]:
    difference = summary.difference
    if difference is None:
        return ()
    number = _number(name, difference.mean, difference.half)
    return (number._replace(signed=True, marks=stars(difference.t_holm)),)


def _best_means(
    summaries: Summaries, groups: Sequence[str], scores: Mapping[str, str]
) -> dict[str, str]:
    """Return the highest mean of each fraction as printed; equal texts are all best."""
    best = {}
    for name in filter(is_fraction, scores):
        means = [summaries[group][name].mean for group in groups]
        if finite := list(filter(math.isfinite, means)):
            best[name] = _number(name, max(finite), math.nan).text
    return best


def _notes_on_differences(summaries: Summaries, groups: Sequence[str]) -> list[str]:
    n_pairs = {
        group: summary.difference.n
        for group in groups
        for summary in summaries[group].values()
        if summary.difference is not None
    }
    tested = [group for group, n in n_pairs.items() if n > 1]
    single = [group for group, n in n_pairs.items() if n == 1]
    notes = []
    if tested:
        over = f", Holm's correction over {len(tested)} groups in each score"
        notes.append(
            "Differences are paired by seed; * p < 0.05, ** p < 0.01: two-sided paired t-test"
            + (over if len(tested) > 1 else "")
            + "."
        )
    if single:
        names = ", ".join(single) if len(single) <= MAX_NAMED else f"{len(single)} groups"
        notes.append(f"One shared seed says nothing about significance: {names}.")
    return notes


def markdown(table: Table) -> str:
    def number(number: Number) -> str:
        half = "" if math.isnan(number.half) else f" ± {number.half:.{number.digits}f}"
        return f"{number.text}{half}{number.marks}"

    def cell(cell: Cell) -> str:
        if isinstance(cell, str):
            return cell.replace("|", "\\|")
        return " ".join(number(c) if i == 0 else f"({number(c)})" for i, c in enumerate(cell))

    rule: list[Cell] = ["---", *["---:"] * (len(table.header) - 1)]
    lines: list[list[Cell]] = [[*table.header], rule, *table.rows]
    text = "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
    title = f"**{table.title}**" if table.title else ""
    parts = [title, text if table.rows else "", *table.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(table: Table) -> str:
    """Return a table as LaTeX that needs booktabs; the best of each score is bold."""

    def number(number: Number) -> str:
        if not math.isfinite(number.mean):
            return "--"
        text = rf"\mathbf{{{number.text}}}" if number.best else number.text
        half = "" if math.isnan(number.half) else rf" \pm {number.half:.{number.digits}f}"
        return f"${text}{half}{'^{' + number.marks + '}' if number.marks else ''}$"

    def cell(cell: Cell) -> str:
        if isinstance(cell, str):
            return escaped(cell)
        return " ".join(number(c) if i == 0 else f"({number(c)})" for i, c in enumerate(cell))

    caption = " ".join([*([f"{table.title}."] if table.title else []), *table.notes])
    lines: list[list[Cell]] = [[*table.header], *table.rows]
    header, *rows = (" & ".join(map(cell, line)) + r" \\" for line in lines)
    body = "\n".join(["\\toprule", header, "\\midrule", *rows, "\\bottomrule"])
    return rf"""% needs \usepackage{{booktabs}}
\begin{{table}}
\centering
\caption{{{escaped(caption)}}}
\begin{{tabular}}{{l{"r" * (len(table.header) - 1)}}}
{body}
\end{{tabular}}
\end{{table}}
"""


def escaped(text: str) -> str:
    text = re.sub(r"[\\~^±<>|−≥_%&#${}]", lambda match: LATEX[match[0]], text)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", text)


def long_csv(summaries: Mapping[str, Summaries], rules: Mapping[str, str]) -> str:
    """Return a CSV line per dataset, group and score; what could not be computed is empty.

    Args:
        rules: by dataset, how the reported epochs were chosen.
    """
    lines = []
    for dataset, groups in summaries.items():
        for group, by_score in groups.items():
            for score, summary in by_score.items():
                values = [
                    *(dataset, group, score, rule_label(rules[dataset])),
                    " ".join(map(str, summary.epochs)),
                    *(summary.mean, summary.half),
                    *(len(summary.seeds), " ".join(map(str, summary.seeds))),
                    *(summary.difference or [""] * 8),
                ]
                lines.append(
                    ["" if isinstance(v, float) and not math.isfinite(v) else v for v in values]
                )
    return csv_text([COLUMNS, *lines])


def csv_text(lines: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def rule_label(rule: str) -> str:
    return "test classes: optimistic" if rule == "test" else rule


def signed_rank_notes(summaries: Summaries) -> list[str]:
    """Return where the t-test and Wilcoxon's disagree at 0.05; the latter needs six pairs."""
    return [
        f"{group} in {name}: p {difference.t_holm:.3g} by the t-test, "
        f"{difference.wilcoxon_holm:.3g} by Wilcoxon's signed-rank test, both after Holm's "
        "correction"
        for group, by_score in summaries.items()
        for name, summary in by_score.items()
        if (difference := summary.difference) is not None
        and not math.isnan(difference.wilcoxon_holm)
        and (difference.t_holm < 0.05) != (difference.wilcoxon_holm < 0.05)
    ]
