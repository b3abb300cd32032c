"""Tables, learning curves and comparisons of runs, made from their run folders.

    python -m utilities.results Training_Results
    python -m utilities.results Training_Results/emoji/* --baseline baseline
    python -m utilities.results Training_Results/emoji/league_* --versus _guided
    python -m utilities.results RUNS --baseline baseline --format latex --output table.tex
    python -m utilities.results RUNS --curves curves.png
    python -m utilities.results --compare RUN_A RUN_B

docs/results.md has the rules: which epoch is reported and what is tested.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from utilities import startup
from utilities.files import atomic_path
from utilities.results import compare, curves
from utilities.results.report import HEADLINES, Report, Selection, how_chosen, report
from utilities.results.runs import (
    RULES,
    Run,
    choose,
    collect,
    default_rule,
    has_unseen_classes,
    read,
)
from utilities.results.tables import FORMATS, latex, long_csv, markdown, signed_rank_notes

CAPTION = "Mean over seeds at every evaluation; bands: 95 % interval, cut where they are wide."


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utilities.results", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    # fmt: off
    add("runs", nargs="*", type=Path, help="run folders, or folders above them")
    add("--baseline", help="group to compare the others with, paired by seed")
    add("--versus", metavar="SUFFIX",
        help="compare each group with the one whose name adds this suffix, such as _guided")
    add("--scores", nargs="+", metavar="SCORE[=HEADING]",
        help=f"names as in metrics.csv (default: {' '.join(HEADLINES)} on the test classes, or "
        "every evaluation score of a run that has none of them)")
    add("--groups", nargs="+", metavar="GROUP[=NAME]",
        help="show only these groups, in this order, optionally renamed (default: all)")
    add("--sort", action="store_true", help="sort rows by the first score; --versus always does")
    add("--epoch_by", type=epoch_rule,
        help="epoch to report: validation (the best by --epoch_score), last, test (the best on "
        "the test classes: optimistic, and labelled so) or a number (default: validation if the "
        "runs have validation scores, else last)")
    add("--epoch_score", help="score whose highest value chooses the epoch (default: the first of "
        "the run's --storage_metrics)")
    add("--format", choices=FORMATS, default="markdown", help="table format (default: markdown)")
    add("--output", type=Path, help="file to write the table to (default: standard output)")
    add("--curves", type=Path, metavar="FILE",
        help="draw learning curves with 95 %% bands over seeds: a .png, .svg or .pdf")
    add("--compare", nargs=2, type=Path, metavar=("RUN_A", "RUN_B"),
        help="show what differs between two runs: flags, versions, scores")
    # fmt: on
    return parser


def epoch_rule(text: str) -> str:
    if text not in RULES and not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"must be {', '.join(RULES)} or an epoch; got {text}")
    return text


def check(args: argparse.Namespace) -> None:
    table_flags = ("runs", "baseline", "versus", "scores", "groups", "sort", "curves")
    if args.compare and any(getattr(args, name) for name in table_flags):
        raise ValueError(
            "--compare takes only its two runs; drop the other runs, and --"
            + ", --".join(table_flags[1:])
        )
    if not args.compare and not args.runs:
        raise ValueError("give run folders, such as Training_Results/emoji/*, or --compare A B")
    if args.baseline and args.versus:
        raise ValueError("--baseline and --versus make different tables; give one of them")
    if args.curves:
        curves.check_path(args.curves)


def epoch_rule_of(args: argparse.Namespace, runs: Sequence[Run]) -> str:
    rule = args.epoch_by or default_rule(runs)
    if args.epoch_score and rule not in ("validation", "test"):
        raise ValueError(f"--epoch_by {rule} ignores scores; drop --epoch_score")
    return rule


def note(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def comparison(args: argparse.Namespace) -> str:
    runs = [read(folder) for folder in args.compare]
    note(*(f"{run.folder} is not finished" for run in runs if not run.finished))
    rule = epoch_rule_of(args, runs)
    a, b = (choose(run, rule, args.epoch_score) for run in runs)
    chosen, _ = how_chosen(rule, (a, b))
    note(f"scores {chosen}")
    differences = compare.compare(a, b, rule)
    if args.format == "csv":
        return compare.as_csv(differences)
    render = latex if args.format == "latex" else markdown
    return "\n".join(map(render, compare.tables(differences, chosen)))


def tables(args: argparse.Namespace) -> str:
    """Return a table for each dataset, and draw the curves."""
    selection = Selection(
        args.scores or (), args.groups or (), args.baseline, args.versus, sort=args.sort
    )
    runs, notes = collect(args.runs, selection.needs)
    note(*notes)
    by_dataset: dict[str, list[Run]] = {}
    for run in runs:
        by_dataset.setdefault(run.dataset, []).append(run)
    if args.curves and len(by_dataset) > 1:
        raise ValueError(
            f"--curves draws one dataset, but the runs are of {', '.join(by_dataset)}; give the "
            "runs of one of them"
        )
    reports: dict[str, Report] = {}
    rules: dict[str, str] = {}
    for dataset, members in by_dataset.items():
        rule = rules[dataset] = epoch_rule_of(args, members)
        results = [choose(run, rule, args.epoch_score) for run in members]
        if not args.scores:
            deployed = [result for result in results if not has_unseen_classes(result)]
            results = [result for result in results if result not in deployed]
            if deployed:
                names = ", ".join(result.run.name for result in deployed)
                note(f"{dataset}: left out, scored on training classes alone: {names}")
            if not results:
                continue
        title = dataset if len(by_dataset) > 1 else ""
        found = reports[dataset] = report(results, selection, rule, title)
        chosen, _ = how_chosen(rule, results)
        note(f"{dataset}: scores {chosen}")
        note(*compare.mixed_flags(found.groups), *signed_rank_notes(found.summaries))
        if args.curves:
            panels, notes = curves.panels(found.groups, found.rows, found.scores)
            note(*notes)
            aside = f" Table: {chosen}." if rule == "test" else ""
            curves.draw(panels, args.curves, CAPTION + aside)
            note(f"wrote {args.curves}")
    if not reports:
        raise ValueError("all runs are scored on training classes alone; name --scores to show")
    if args.format == "csv":
        return long_csv({name: found.summaries for name, found in reports.items()}, rules)
    render = latex if args.format == "latex" else markdown
    return "\n".join(render(found.table) for found in reports.values())


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        check(args)
        text = comparison(args) if args.compare else tables(args)
        if args.output:
            with atomic_path(args.output) as temporary:
                temporary.write_text(text, encoding="utf-8")
            note(f"wrote {args.output}")
        else:
            sys.stdout.write(text)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    startup.begin()
    main()
