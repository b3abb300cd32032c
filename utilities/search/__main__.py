"""Searches flags of main.py by cross-validation over the training classes.

    python -m utilities.search --study margin --trials 30 \\
        --space lr=1e-6..1e-4:log loss_margin_beta=0.6..1.8 batch_mining=distance,semihard \\
        -- --dataset cub200 --source_path data --loss margin

Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020: flags are chosen
by the mean over K folds of classes that a fold's training does not see, all of them training
classes; test classes are never read. They search 50 trials of 4 folds by Bayesian optimisation; so
do we, by the tree-structured Parzen estimator of Optuna (Akiba et al., KDD 2019), which also takes
choices. They report the mean over the folds' models; we train anew on all training classes.

A trial is a set of flags, its score the mean over folds of the best validation score of an epoch.
Trials are kept in SQLite; the same command goes on where an earlier one was stopped or killed.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import DatabaseError

import parameters
from utilities.files import take_lock
from utilities.finished import PLACES
from utilities.search.outcome import report
from utilities.search.space import OWN, command_line, read_space
from utilities.search.trials import Search, trial_flags

PROGRAM = (sys.executable, str(Path(parameters.__file__).with_name("main.py")))


def open_study(
    storage: Path, name: str, asked: Mapping[str, Any], *, seed: int, minimize: bool
) -> optuna.Study:
    """The study in a SQLite file, made where there is none.

    Args:
        asked: what all its trials have in common; text by the flag that asks for it.

    Raises:
        ValueError: the file is no database of Optuna's, or the study was begun with something else.
    """
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{storage.resolve()}",
            study_name=name,
            load_if_exists=True,
            direction="minimize" if minimize else "maximize",
            pruner=optuna.pruners.MedianPruner(),
        )
    except (DatabaseError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--storage {storage} cannot be used ({reason}); give another") from None
    before = study.user_attrs.get("asked")
    if before is None:
        study.set_user_attr("asked", dict(asked))
    elif before != asked:
        differ = [f"{flag} {before.get(flag)} (now {asked[flag]})" for flag in asked
                  if before.get(flag) != asked[flag]]  # fmt: skip
        raise ValueError(
            f"--study {name} was begun with {', '.join(differ)}; give these again or another "
            "--study"
        )
    # Seeded by the number of trials as well: from the seed alone, the first ones were drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 1000003 * len(study.trials))
    return study


def build_parser() -> argparse.ArgumentParser:
    """The flags before ``--``; those after are main.py's."""
    parser = argparse.ArgumentParser(
        prog="python -m utilities.search",
        usage="%(prog)s --study NAME --space FLAG=VALUES ... [--flag value ...] -- [main.py's]",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", required=True, help="name; a study of that name is gone on with")
    add(
        "--space",
        nargs="+",
        required=True,
        metavar="FLAG=VALUES",
        help="flags of main.py: lr=1e-6..1e-3:log (on a logarithmic scale), "
        "language_distill_w=0..20, batch_mining=distance,semihard, a_switch=on,off",
    )
    add(
        "--trials",
        type=parameters.count,
        default=50,
        help="of the study, earlier ones included (%(default)s)",
    )
    add(
        "--cv_folds",
        type=parameters.number(int, low=2),
        default=4,
        help="runs per trial (%(default)s)",
    )
    add("--objective", default="val/embeds/e_recall@1", help="validation score (%(default)s)")
    add("--minimize", action="store_true", help="less of the objective is better")
    add(
        "--prune",
        action="store_true",
        help="end a trial whose mean over its folds so far is below the median of earlier trials",
    )
    add(
        "--jobs",
        type=parameters.count,
        default=1,
        help="trials at once, each with its share of the cores (%(default)s)",
    )
    add("--gpus", type=parameters.natural, nargs="+", default=[], help="devices for these jobs")
    add("--storage", type=Path, help="SQLite file (default: trials.db in the study's folder)")
    add("--keep_checkpoints", action="store_true", help="of finished runs, too")
    return parser


def main(argv: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> None:
    """Search as the command line says.

    Args:
        argv: its words; None reads ``sys.argv``.
        program: what is run with main.py's flags.

    Raises:
        SystemExit: flags that cannot work (2), or a search that ended before its time (1).
    """
    given = list(sys.argv[1:] if argv is None else argv)
    split = given.index("--") if "--" in given else len(given)
    parser = build_parser()
    args = parser.parse_args(given[:split])
    fixed = given[split + 1 :]
    flags = parameters.parse(fixed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        refuse(args, parameters.given(fixed))
        folder = Path(flags.save_path) / "search" / args.study
        at_first = trial_flags(fixed, {}, args.objective, folder, fold=0, folds=args.cv_folds)
        space = read_space(args.space, command_line(at_first))
        shared = {k: v for k, v in parameters.given(fixed).items() if k not in PLACES}
        asked = {
            "--space": " ".join(args.space),
            "--cv_folds": args.cv_folds,
            "--objective": args.objective,
            "--minimize": args.minimize,
            "--": shlex.join(command_line(dict(sorted(shared.items())))),
        }
        storage = args.storage or folder / "trials.db"
        folder.mkdir(parents=True, exist_ok=True)
        storage.parent.mkdir(parents=True, exist_ok=True)
        place = storage.with_name(f".{storage.name}.{args.study}.lock")
        held = (
            f"{place} is held by another search of this study, or by runs that outlived one; wait "
            "until they end, or end them"
        )
        with take_lock(place, held) as lock:  # runs are given it, and hold it, too
            study = open_study(storage, args.study, asked, seed=flags.seed, minimize=args.minimize)
            search = Search(
                study,
                space,
                fixed,
                folder=folder,
                folds=args.cv_folds,
                objective=args.objective,
                minimize=args.minimize,
                jobs=args.jobs,
                gpus=args.gpus,
                prune=args.prune,
                keep_checkpoints=args.keep_checkpoints,
                program=program,
                lock=lock,
            )
            why = search.run(args.trials)
            print(report(study, fixed, folder, args.objective), flush=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if why:
        print(why, file=sys.stderr)
        sys.exit(0 if search.interruption.asked else 1)


def refuse(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Raise ValueError for flags that cannot work, before anything is made."""
    if not re.fullmatch(r"\w[\w.-]*", args.study):
        raise ValueError(f"--study {args.study!r} cannot name a folder; use letters and digits")
    own = [flag for flag in given if flag in OWN]
    if own:
        raise ValueError(f"--{own[0]} is given by the search itself; leave it out after --")
    if not re.fullmatch(r"val/(embeds|features)/[^/]+", args.objective):
        raise ValueError(
            f"--objective {args.objective} is no validation score; give one such as "
            "val/embeds/e_recall@1 or val/features/e_recall@1"
        )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
