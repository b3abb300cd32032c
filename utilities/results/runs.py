"""Reads runs from their folders and chooses the epoch whose scores are reported."""

import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utilities.registry import closest_first
from utilities.run_files import Row, is_finished, read_config, read_rows

STUDY = "study.log"  # in the folder of a search
SEARCHES = {"trials.db", "best.json"}  # in the folder of a search
RULES = ("validation", "last", "test")
# Scores that are neither fractions nor better when higher; no epoch is chosen by them.
NOT_FRACTIONS = re.compile(
    r"loss|distance|dists@|intra_over_inter|alignment|uniformity|rho_spectrum"
)

Seed = int | str  # 0, or "0f1" for seed 0 on fold 1


class Run(NamedTuple):
    """A run as read from its folder; ``rows`` are those of metrics.jsonl, oldest first."""

    folder: Path
    config: dict[str, Any]
    rows: list[Row]

    @property
    def flags(self) -> dict[str, Any]:
        return self.config["flags"]

    @property
    def dataset(self) -> str:
        return self.flags["dataset"]

    @property
    def group(self) -> str:
        return self.flags["group"]

    @property
    def seed(self) -> Seed:
        """The seed, with the fold in cross-validation: unique within a group."""
        seed, fold = self.flags["seed"], self.flags.get("cv_fold")
        return f"{seed}f{fold}" if self.flags.get("cv_folds") else seed

    @property
    def finished(self) -> bool:
        return is_finished(self.folder, self.config, self.rows)

    @property
    def name(self) -> str:
        return f"{self.group} seed {self.seed}"

    @property
    def age(self) -> tuple[str, int]:
        attempt = re.search(r"_(\d+)$", self.folder.name)
        return str(self.config.get("date", "")), int(attempt[1]) if attempt else 1


class Result(NamedTuple):
    """The scores of a run at the epoch that is reported."""

    run: Run
    epoch: int
    scores: dict[str, float]  # by name; nan where a score was not finite
    by: str = ""  # the score that chose the epoch, if any
    choices: int = 1  # number of epochs to choose from


Groups = dict[str, dict[Seed, Result]]  # group, then seed


def before_training(rows: Sequence[Row], score: str) -> dict[str, float]:
    """Return a score at epoch 0 and that of the backbone's features, as far as they are known."""
    images, _, metric = score.partition("/")
    first = rows[0] if metric and len(rows) > 1 and rows[0]["epoch"] == 0 else {}
    backbone = f"{images}/backbone/{metric.rpartition('/')[2]}"
    names = {"backbone's features": backbone, "before training": score}
    return {title: first[name] for title, name in names.items() if first.get(name) is not None}


def read(folder: Path) -> Run:
    config = read_config(folder)
    missing = {"dataset", "group", "seed", "n_epochs"} - set(config["flags"])
    if missing:
        raise ValueError(f"{folder} holds no run (config.json lacks {', '.join(sorted(missing))})")
    return Run(folder, config, read_rows(folder / "metrics.jsonl"))


def mean_before_training(runs: Sequence[Sequence[Row]], score: str) -> dict[str, float]:
    """Return the means over runs of what ``before_training`` finds in the rows of all of them."""
    found = [before_training(rows, score) for rows in runs]
    shared = [title for title in (found[0] if found else {}) if all(title in f for f in found)]
    return {title: statistics.fmean(f[title] for f in found) for title in shared}


def beneath(folder: Path) -> list[Path]:
    """Return the run folders below a folder, sorted.

    Left out are the trials of a search, which ``utilities.search`` reports, and runs that only
    evaluated a checkpoint, which have the group and the seed of the run that trained it.
    """
    found: list[Path] = []
    for place, below, files in os.walk(folder):
        below.sort()
        is_run = "config.json" in files and not {"metrics.jsonl", "log.txt"}.isdisjoint(files)
        if is_run:
            found.append(Path(place))
        if is_run or not SEARCHES.isdisjoint(files):
            below.clear()
    return [path for path in found if not read(path).flags.get("evaluate_only")]


def collect(folders: Iterable[Path], wanted: Callable[[str], bool]) -> tuple[list[Run], list[str]]:
    """Return the newest finished run per dataset, group and seed, and notes on the rest.

    Args:
        folders: of runs, or above them.
    """
    found: dict[tuple[str, str, Seed], list[Run]] = {}
    other_folders, unfinished, notes = [], [], []
    given: dict[Path, Path] = {}
    for folder in folders:
        if not folder.exists():
            raise ValueError(f"{folder} does not exist; give run folders, or a folder above them")
        is_run = (folder / "config.json").is_file()
        if not (of_runs := [folder] if is_run else beneath(folder)):
            other_folders.append(folder.name)
        given |= {path.resolve(): path for path in of_runs}
    for folder in given.values():
        run = read(folder)
        if not wanted(run.group):
            continue
        if run.finished:
            found.setdefault((run.dataset, run.group, run.seed), []).append(run)
        else:
            epoch = run.rows[-1]["epoch"] if run.rows else 0
            unfinished.append(f"{run.name} (epoch {epoch} of {run.flags['n_epochs']})")
    if other_folders:
        notes.append(f"left out, not a run folder: {', '.join(other_folders)}")
    if unfinished:
        notes.append(f"left out, not finished: {', '.join(unfinished)}")
    runs = []
    for same in found.values():
        newest = max(same, key=lambda run: run.age)
        runs.append(newest)
        older = [run.folder.name for run in same if run is not newest]
        if older:
            taken = f"{newest.name}: took {newest.folder.name}, the newest"
            notes.append(f"{taken}, and left out {', '.join(older)}")
    if not runs:
        raise ValueError("; ".join(["no finished run", *notes]))
    return runs, notes


def is_evaluation(name: str) -> bool:
    return not name.startswith(("train/", "miner/", "epoch")) or name.count("/") > 1


def is_fraction(name: str) -> bool:
    """Return whether a score is a fraction that is better when higher."""
    return not NOT_FRACTIONS.search(name)


def is_validation(name: str) -> bool:
    return name.startswith("val/")


def is_test(name: str) -> bool:
    """Return whether a score is on test classes, or on the datasets of frozen features."""
    return is_evaluation(name) and not name.startswith(("val/", "train/"))


def has_unseen_classes(result: Result) -> bool:
    """Return whether any score is of classes that training did not see."""
    return any(is_evaluation(name) and not name.startswith("train/") for name in result.scores)


def check_scores(results: Sequence[Result], names: Iterable[str]) -> None:
    for name in names:
        for result in results:
            if name not in result.scores:
                epochs = [str(row["epoch"]) for row in result.run.rows if name in row]
                raise ValueError(
                    f"--scores {name} is missing in epoch {result.epoch} of {result.run.name}"
                    + (f", which has it at {', '.join(epochs)}" if epochs else "")
                    + "; known, closest first: "
                    + ", ".join(closest_first(name, filter(is_evaluation, result.scores)))
                )


def default_rule(runs: Sequence[Run]) -> str:
    """Return ``validation`` if the runs have validation scores, ``last`` if none has."""
    having = [run for run in runs if any(map(is_validation, _score_names(run)))]
    if len(having) == len(runs):
        return "validation"
    if not having:
        return "last"
    lacking = next(run for run in runs if run not in having)
    raise ValueError(
        f"{having[0].name} has validation scores and {lacking.name} has none, of {len(having)} and "
        f"{len(runs) - len(having)} runs; give --epoch_by last, or --groups of one kind"
    )


def choose(run: Run, rule: str, score: str | None = None) -> Result:
    """Return the scores of the epoch that ``rule`` chooses.

    ``validation`` and ``test`` choose the epoch with the highest ``score``, by default the first of
    ``--storage_metrics`` on these classes; of equal ones the first, as for ``best_<score>.pt``.
    Epoch 0 does not count if the run trains.
    """
    rows = [row for row in run.rows if any(map(is_evaluation, row))]
    if not rows:
        raise ValueError(f"{run.folder}: no epoch was evaluated")
    if rule == "last":
        return _result(run, rows[-1])
    if rule not in RULES:
        for row in rows:
            if row["epoch"] == int(rule):
                return _result(run, row)
        known = ", ".join(str(row["epoch"]) for row in rows)
        raise ValueError(f"--epoch_by {rule}: {run.name} was evaluated at epochs {known}")
    score = score or _storage_score(run, rule)
    if not is_fraction(score):
        raise ValueError(f"--epoch_score must be a score that is better when higher; got {score}")
    if (rule == "validation") != is_validation(score):
        raise ValueError(f"--epoch_score {score} does not fit --epoch_by {rule}")
    candidates = [
        row
        for row in rows
        if math.isfinite(_value(row, score)) and (row["epoch"] or not run.flags["n_epochs"])
    ]
    if not candidates:
        raise ValueError(
            f"--epoch_score {score} is missing at every epoch of {run.name}; known, closest first: "
            + ", ".join(closest_first(score, filter(is_evaluation, _score_names(run))))
        )
    best = max(candidates, key=lambda row: row[score])
    return _result(run, best)._replace(by=score, choices=len(candidates))


def by_group(results: Iterable[Result]) -> Groups:
    groups: Groups = {}
    for result in results:
        groups.setdefault(result.run.group, {})[result.run.seed] = result
    return groups


def _storage_score(run: Run, rule: str) -> str:
    metric = (run.flags.get("storage_metrics") or ["e_recall@1"])[0]
    of_rule = is_validation if rule == "validation" else is_test
    for name in _score_names(run):
        if of_rule(name) and name.endswith(f"/{metric}"):
            return name
    raise ValueError(
        f"--epoch_by {rule}: {run.name} has no {rule} score {metric}; give --epoch_score, or "
        "--epoch_by last"
    )


def _score_names(run: Run) -> list[str]:
    return list(dict.fromkeys(name for row in run.rows for name in row if name != "epoch"))


def _value(row: Row, name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else float(value)


def _result(run: Run, row: Row) -> Result:
    return Result(run, int(row["epoch"]), {n: _value(row, n) for n in row if n != "epoch"})
