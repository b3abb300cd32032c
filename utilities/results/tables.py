"""Tables of summaries: Markdown, LaTeX (booktabs) and CSV.

Markdown and LaTeX print fractions in percent with two decimals, CSV prints all scores as recorded.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from utilities.results.runs import is_fraction
from utilities.results.significance import stars
from utilities.results.summary import Summaries, Summary

FORMATS = ("markdown", "csv", "latex")

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$",
    "≥": r"$\geq$", **{sign: f"\\{sign}" for sign in "_%&#${}"},
}  # fmt: skip

FEW = 4  # groups that a note names

COLUMNS = (
    "dataset", "group", "score", "epoch_by", "epochs", "mean", "half_width", "n", "seeds",
    "versus", "difference", "difference_half_width", "n_pairs", "p_t", "p_t_holm",
    "p_wilcoxon", "p_wilcoxon_holm",
)  # fmt: skip


class Number(NamedTuple):
    """A mean as it is printed.

    Attributes:
        mean, half: already in percent where the score is a fraction; half may be nan.
        digits: behind the point.
        signed: with + before a gain.
        marks: stars of significance.
        best: the best of its score in the table.
    """

    mean: float
    half: float
    digits: int
    signed: bool = False
    marks: str = ""
    best: bool = False

    @property
    def text(self) -> str:
        """The mean alone."""
        return f"{self.mean:{'+' if self.signed else ''}.{self.digits}f}"


Cell = str | tuple[Number, ...]  # a second number stands in brackets


class Table(NamedTuple):
    """What a page shows: a title, a row of headings, rows of cells, and notes below."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str]


# --------------------------------------------------------------------------------------------------
# From summaries
# --------------------------------------------------------------------------------------------------
def group_table(
    title: str,
    summaries: Summaries,
    scores: Mapping[str, str],
    rows: Mapping[str, str],
    *,
    epochs: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """A row per group, a column per score; beside each mean, in brackets, its difference.

    Args:
        scores: name to heading.
        rows: group to what stands in its row.
        epochs: heading of a column of epochs; none where it is empty.
    """
    best = _best({group: summaries[group] for group in rows}, scores)
    lines: list[list[Cell]] = []
    for group, label in rows.items():
        summary = summaries[group]
        line: list[Cell] = [*_leading(label, summary, bool(epochs))]
        for name in scores:
            cell = _mean(name, summary[name], best)
            line.append((cell, *_change(name, summary[name])))
        lines.append(line)
    header = ["group", "seeds", *([epochs] if epochs else []), *scores.values()]
    return Table(title, header, lines, [*notes, *_said(summaries, rows)])


def pair_table(
    title: str,
    summaries: Summaries,
    scores: Mapping[str, str],
    rows: Mapping[str, str],
    suffix: str,
    *,
    epochs: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """A row per group; for each score itself, the group whose name adds ``suffix``, the change."""
    shown = {name: summaries[name] for group in rows for name in (group, group + suffix)}
    best = _best(shown, scores)
    lines: list[list[Cell]] = []
    for group, label in rows.items():
        one, other = summaries[group], summaries[group + suffix]
        line: list[Cell] = [*_leading(label, one, bool(epochs))]
        shared = set(one[next(iter(scores))].seeds) & set(other[next(iter(scores))].seeds)
        line[1] = str(len(shared))
        for name in scores:
            line += [(_mean(name, one[name], best),), (_mean(name, other[name], best),)]
            line.append(_change(name, other[name]) or "")
        lines.append(line)
    headings = [
        cell for heading in scores.values() for cell in (heading, suffix.strip("_"), "change")
    ]
    header = ["group", "seeds", *([epochs] if epochs else []), *headings]
    return Table(title, header, lines, [*notes, *_said(summaries, [row + suffix for row in rows])])


def _leading(label: str, summary: Mapping[str, Summary], epochs: bool) -> list[str]:
    first = next(iter(summary.values()))
    return [label, str(len(first.seeds)), *(["/".join(map(str, first.epochs))] if epochs else [])]


def _mean(name: str, summary: Summary, best: Mapping[str, str]) -> Number:
    number = _number(name, summary.mean, summary.half)
    return number._replace(best=number.text == best.get(name))


def _change(name: str, summary: Summary) -> tuple[Number, ...]:
    difference = summary.difference
    if difference is None:
        return ()
    number = _number(name, difference.mean, difference.half)
    return (number._replace(signed=True, marks=stars(difference.t_holm)),)


def _number(name: str, mean: float, half: float) -> Number:
    return Number(100 * mean, 100 * half, 2) if is_fraction(name) else Number(mean, half, 4)


def _best(summaries: Summaries, scores: Mapping[str, str]) -> dict[str, str]:
    """The highest mean of each score of which more is better, as printed: equal ones are all it."""
    best = {}
    for name in filter(is_fraction, scores):
        means = [summary[name].mean for summary in summaries.values()]
        finite = [mean for mean in means if math.isfinite(mean)]
        if finite:
            best[name] = _number(name, max(finite), math.nan).text
    return best


def _said(summaries: Summaries, groups: Mapping[str, str] | Sequence[str]) -> list[str]:
    """What the differences of these groups allow to say."""
    found = {
        group: difference
        for group in groups
        for summary in summaries[group].values()
        if (difference := summary.difference) is not None
    }
    tested = [group for group, difference in found.items() if difference.n > 1]
    single = [group for group, difference in found.items() if difference.n == 1]
    notes = []
    if tested:
        over = f", Holm's correction over {len(tested)} groups in each score"
        notes.append(
            "Differences are paired by seed; * p < 0.05, ** p < 0.01: two-sided paired t-test"
            + (over if len(tested) > 1 else "")
            + "."
        )
    if single:
        which = ", ".join(single) if len(single) <= FEW else f"{len(single)} groups"
        notes.append(f"One shared seed says nothing about significance: {which}.")
    return notes


# --------------------------------------------------------------------------------------------------
# To text
# --------------------------------------------------------------------------------------------------
def markdown(table: Table) -> str:
    """A Markdown table; the title above it in bold, notes below."""

    def number(number: Number) -> str:
        half = "" if math.isnan(number.half) else f" ± {number.half:.{number.digits}f}"
        return f"{number.text}{half}{number.marks}"

    def cell(cell: Cell) -> str:
        if isinstance(cell, str):
            return cell.replace("|", "\\|")
        return " ".join(number(c) if i == 0 else f"({number(c)})" for i, c in enumerate(cell))

    under: list[Cell] = ["---", *["---:"] * (len(table.header) - 1)]
    lines: list[list[Cell]] = [[*table.header], under, *table.rows]
    text = "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
    title = f"**{table.title}**" if table.title else ""
    parts = [title, text if table.rows else "", *table.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(table: Table) -> str:
    """A LaTeX table that needs the package booktabs; the best of each score is bold."""

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
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text with the signs that LaTeX reads as commands written out; ``@`` needs nothing."""
    text = re.sub(r"[\\~^±<>|−≥_%&#${}]", lambda match: LATEX[match[0]], text)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", text)


def long_csv(summaries: Mapping[str, Summaries], rule: str) -> str:
    """A line per dataset, group and score; what could not be computed is empty.

    Args:
        summaries: by dataset.
        rule: how epochs were chosen.
    """
    lines = []
    for dataset, groups in summaries.items():
        for group, by_score in groups.items():
            for score, summary in by_score.items():
                difference = summary.difference
                compared = ("", "", "", "", "", "", "", "")
                lines.append(
                    (
                        *(dataset, group, score, labelled_rule(rule), _joined(summary.epochs)),
                        *map(_plain, (summary.mean, summary.half)),
                        *(len(summary.seeds), _joined(summary.seeds)),
                        *(map(_plain, difference) if difference else compared),
                    )
                )
    return csv_text([COLUMNS, *lines])


def labelled_rule(rule: str) -> str:
    """The rule by which epochs were chosen, as CSV names it."""
    return "test classes: optimistic" if rule == "test" else rule


def csv_text(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def signed_rank_note(summaries: Summaries) -> list[str]:
    """Where the t-test and Wilcoxon's disagree at 0.05; the latter needs six pairs."""
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


def _joined(values: Sequence[int | str]) -> str:
    return " ".join(map(str, values))


def _plain(value: object) -> object:
    return "" if isinstance(value, float) and not math.isfinite(value) else value
