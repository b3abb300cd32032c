"""Searches flags of main.py by cross-validation over the training classes; see docs/search.md.

    python -m utilities.search --study margin --trials 30 \\
        --space lr=1e-6..1e-4:log loss_margin_beta=0.6..1.8 batch_mining=distance,semihard \\
        -- --dataset cub200 --source_path data --loss margin

As in Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020, but flags are drawn by
Optuna's tree-structured Parzen estimator (Akiba et al., KDD 2019). Repeating it resumes a search.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

import metrics
import parameters
from utilities import faults, startup
from utilities.files import take_lock
from utilities.finished import PLACES
from utilities.flag_types import Number, count, natural
from utilities.registry import pick
from utilities.search.outcome import report
from utilities.search.space import OWN, CommandLine, Flag, read_space
from utilities.search.trials import Search, open_study, stored, trial_flags

PROGRAM = (sys.executable, str(Path(parameters.__file__).with_name("main.py")))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags before ``--``; those after it are main.py's."""
    parser = argparse.ArgumentParser(
        prog="python -m utilities.search",
        usage="%(prog)s --study NAME --space FLAG=VALUES ... [--flag value ...] -- [main.py's]",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    # fmt: off
    add("--study", required=True, help="name; an existing study of this name is resumed")
    add("--space", nargs="+", required=True, metavar="FLAG=VALUES",
        help="flags of main.py: lr=1e-6..1e-3:log (on a logarithmic scale), "
        "language_distill_w=0..20, batch_mining=distance,semihard, a_switch=on,off")
    add("--trials", type=count, default=50,
        help="trials of the study, including earlier ones (%(default)s)")
    add("--cv_folds", type=Number(int, low=2), default=4,
        help="runs per trial (%(default)s)")
    add("--objective", default="val/embeds/e_recall@1", help="validation score (%(default)s)")
    add("--minimize", action="store_true", help="minimise the objective")
    add("--prune", action="store_true",
        help="end a trial whose mean over its folds so far is below the median of earlier trials")
    add("--jobs", type=count, default=1,
        help="parallel trials, which share the cores equally (%(default)s)")
    add("--gpus", type=natural, nargs="+", default=[], help="devices for these jobs")
    add("--storage", type=Path, help="SQLite file (default: trials.db in the study's folder)")
    add("--keep_checkpoints", action="store_true", help="keep checkpoints of finished runs")
    # fmt: on
    return parser


def main_py() -> CommandLine:
    flags = {
        option.removeprefix("--"): Flag(action.dest, action.nargs, action.default)
        for action in parameters.build_parser()._actions
        for option in action.option_strings[:1]  # a second one is a familiar name of the flag
        if option.startswith("--")
    }
    return CommandLine(flags, lambda words: vars(parameters.parse(words)), parameters.given)


def main(argv: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> None:
    """Run the search that the command line describes, with ``program`` as main.py."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    parser = build_parser()
    args = parser.parse_args(words[:split])
    fixed = words[split + 1 :]
    line = main_py()
    flags = line.parse(fixed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with faults.reported(parser.error):
        given = line.given(fixed)
        check(args, given)
        folder = Path(flags["save_path"]) / "search" / args.study
        first = trial_flags(line, fixed, args.objective, folder, 0, args.cv_folds)
        space = read_space(args.space, line.words_of(first), line)
        shared = {flag: value for flag, value in sorted(given.items()) if flag not in PLACES}
        settings = {
            "--space": " ".join(args.space),
            "--cv_folds": args.cv_folds,
            "--objective": args.objective,
            "--minimize": args.minimize,
            "--": shlex.join(line.words_of(shared)),
        }
        storage = args.storage or folder / "trials.db"
        folder.mkdir(parents=True, exist_ok=True)
        storage.parent.mkdir(parents=True, exist_ok=True)
        place = storage.with_name(f".{storage.name}.{args.study}.lock")
        held = (
            f"{place} is held by another search of this study, or by runs that outlived one; wait "
            "until they end, or end them"
        )
        with take_lock(place, held) as lock, stored(storage):  # the runs inherit and hold it too
            seed, minimize = flags["seed"], args.minimize
            study = open_study(storage, args.study, settings, seed=seed, minimize=minimize)
            search = Search(
                study=study,
                space=space,
                fixed=fixed,
                line=line,
                program=program,
                folder=folder,
                folds=args.cv_folds,
                lock=lock,
                **pick(args, "objective", "minimize", "jobs", "gpus", "prune", "keep_checkpoints"),
            )
            ended_early = search.run(args.trials)
            print(report(study, fixed, line, folder, args.objective), flush=True)
    if ended_early:
        print(ended_early, file=sys.stderr)
        sys.exit(0 if search.interruption.signal else 1)


def check(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"\w[\w.-]*", args.study):
        raise ValueError(f"--study {args.study!r} cannot name a folder; use letters and digits")
    own = [flag for flag in given if flag in OWN]
    if own:
        raise ValueError(f"--{own[0]} is set by the search itself; leave it out after --")
    if not re.fullmatch(r"val/(embeds|features|words)/[^/]+", args.objective):
        raise ValueError(
            "--objective must be a validation score, such as val/embeds/e_recall@1 or "
            f"val/words/word_mAP; got {args.objective}"
        )
    _, kind, metric = args.objective.split("/")
    by_words = metrics.parse(metric).words_by is not None
    if by_words != (kind == "words"):
        named = f"val/{'words' if by_words else 'embeds'}/{metric}"
        raise ValueError(f"--objective {args.objective} is no score; use {named}")


if __name__ == "__main__":
    startup.begin()
    main()
