"""Tables, pictures and comparisons of runs, from their folders alone.

    python -m utilities.results Training_Results/emoji/* --baseline baseline
    python -m utilities.results Training_Results/emoji/league_* --versus _guided
    python -m utilities.results RUNS --baseline baseline --format latex --output table.tex
    python -m utilities.results RUNS --curves curves.png
    python -m utilities.results --compare RUN_A RUN_B

docs/results.md has the rules: which epoch is reported, and what is tested.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from utilities.files import atomic_path
from utilities.results import compare
from utilities.results.curves import check_picture, draw, panels
from utilities.results.report import HEADLINES, Wanted, how_chosen, report
from utilities.results.runs import (
    RULES,
    Run,
    choose,
    collect,
    default_rule,
    read,
)
from utilities.results.tables import FORMATS, latex, long_csv, markdown, signed_rank_note

CURVES_SHOW = "Mean over seeds at every evaluation; bands: 95 % interval, cut where they are wide."


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utilities.results", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("runs", nargs="*", type=Path, help="run folders")
    add("--baseline", help="group to compare the others with, seed by seed")
    add(
        "--versus",
        metavar="SUFFIX",
        help="put each group beside the one whose name adds this, such as _guided",
    )
    add(
        "--scores",
        nargs="+",
        metavar="SCORE[=HEADING]",
        help=f"names as in metrics.csv (default: {' '.join(HEADLINES)} of the test classes; where "
        "a run has none of them, all that it was evaluated by)",
    )
    add(
        "--groups",
        nargs="+",
        metavar="GROUP[=NAME]",
        help="only these groups, in this order, maybe under another name (default: all)",
    )
    add("--sort", action="store_true", help="rows by the first score, as --versus has them")
    add(
        "--epoch_by",
        type=epoch_rule,
        help="which epoch of a run is reported: validation (the best by --epoch_score), last, "
        "test (the best on the test classes: optimistic, and labelled so) or a number (default: "
        "validation where the runs have validation scores, else last)",
    )
    add(
        "--epoch_score",
        help="the score whose highest value chooses the epoch (default: the first of the run's "
        "--storage_metrics)",
    )
    add("--format", choices=FORMATS, default="markdown", help="of the table (default: markdown)")
    add("--output", type=Path, help="file for the table (default: standard output)")
    add(
        "--curves",
        type=Path,
        metavar="FILE",
        help="draw learning curves with 95 %% bands over seeds: a .png, .svg or .pdf",
    )
    add(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("RUN_A", "RUN_B"),
        help="show what differs between two runs: flags, versions, scores",
    )
    return parser


def epoch_rule(text: str) -> str:
    if text not in RULES and not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"{text} is neither {', '.join(RULES)} nor an epoch")
    return text


def check(args: argparse.Namespace) -> None:
    """See that the flags go together, before a file is read.

    Raises:
        ValueError: they do not.
    """
    of_tables = ("runs", "baseline", "versus", "scores", "groups", "sort", "curves")
    if args.compare and any(getattr(args, name) for name in of_tables):
        raise ValueError(
            "--compare takes its two runs alone; drop the other runs, and --"
            + ", --".join(of_tables[1:])
        )
    if not args.compare and not args.runs:
        raise ValueError("give run folders, such as Training_Results/emoji/*, or --compare A B")
    if args.baseline and args.versus:
        raise ValueError("--baseline and --versus make different tables; give one of them")
    if args.curves:
        check_picture(args.curves)


def rule_of(args: argparse.Namespace, runs: Sequence[Run]) -> str:
    """How epochs are chosen.

    Raises:
        ValueError: ``--epoch_score`` is given to a rule that looks at no score, or no rule does.
    """
    rule = args.epoch_by or default_rule(runs)
    if args.epoch_score and rule not in ("validation", "test"):
        raise ValueError(f"--epoch_by {rule} looks at no score; drop --epoch_score")
    return rule


def say(note: str) -> None:
    print(note, file=sys.stderr)


def write(text: str, path: Path | None) -> None:
    """To a file that is whole or absent, or to standard output."""
    if path is None:
        sys.stdout.write(text)
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"wrote {path}")


def compared(args: argparse.Namespace) -> str:
    """Two runs side by side, finished or not, in the format that is asked for."""
    runs = [read(folder) for folder in args.compare]
    for run in runs:
        if not run.finished:
            say(f"{run.folder} is not finished")
    rule = rule_of(args, runs)
    a, b = (choose(run, rule, args.epoch_score) for run in runs)
    said = how_chosen(rule, (a, b))[0]
    say(f"scores {said}")
    comparison = compare.compare(a, b)
    if args.format == "csv":
        return compare.as_csv(comparison, rule)
    render = latex if args.format == "latex" else markdown
    return "\n".join(map(render, compare.tables(comparison, said)))


def tabulated(args: argparse.Namespace) -> str:
    """A table for each dataset in the format that is asked for; curves are drawn on the way.

    Raises:
        ValueError: a run, group or score that is not there or not as expected.
    """
    wanted = Wanted(
        args.scores or (), args.groups or (), args.baseline, args.versus, sort=args.sort
    )
    runs, notes = collect(args.runs, wanted.has)
    for note in notes:
        say(note)
    rule = rule_of(args, runs)
    by_dataset: dict[str, list[Run]] = {}
    for run in runs:
        by_dataset.setdefault(run.dataset, []).append(run)
    if args.curves and len(by_dataset) > 1:
        raise ValueError(
            f"--curves draws one dataset, and the runs are of {', '.join(by_dataset)}; give the "
            "runs of one of them"
        )
    reports = {}
    for dataset, members in by_dataset.items():
        results = [choose(run, rule, args.epoch_score) for run in members]
        title = dataset if len(by_dataset) > 1 else ""
        found = reports[dataset] = report(results, wanted, rule, title)
        for note in (
            f"{dataset}: scores {how_chosen(rule, results)[0]}",
            *compare.mixed_flags(found.groups),
            *signed_rank_note(found.summaries),
        ):
            say(note)
        if args.curves:
            drawn, notes = panels(found.groups, found.rows, found.scores)
            for note in notes:
                say(note)
            aside = f" Table: {how_chosen(rule, results)[0]}." if rule == "test" else ""
            draw(drawn, args.curves, CURVES_SHOW + aside)
            say(f"wrote {args.curves}")
    if args.format == "csv":
        return long_csv({name: found.summaries for name, found in reports.items()}, rule)
    render = latex if args.format == "latex" else markdown
    return "\n".join(render(found.table) for found in reports.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the command line asks for."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        check(args)
        write(compared(args) if args.compare else tabulated(args), args.output)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
