"""Reads runs from their folders, and chooses the epoch whose scores are reported.

Only ``config.json`` and ``metrics.jsonl`` are read, with the standard library alone, since the
early exit of main.py reads the same files before torch is imported.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utilities.registry import closest_first

RULES = ("validation", "last", "test")
# Scores of which more is not better; they are no fractions either, and no epoch is chosen by them.
NO_FRACTION = re.compile(r"loss|distance|dists@|intra_over_inter|alignment|uniformity|rho_spectrum")

Row = dict[str, Any]  # {"epoch": int, score name: float or None}


Seed = int | str  # 0, or 0f1 for seed 0 on fold 1


class Run(NamedTuple):
    """One run as its folder tells it; ``rows`` are those of metrics.jsonl, oldest first."""

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
        """What tells it from others of its group: the seed, and the fold where there are some."""
        seed, fold = self.flags["seed"], self.flags.get("cv_fold")
        return f"{seed}f{fold}" if self.flags.get("cv_folds") else seed

    @property
    def finished(self) -> bool:
        return bool(self.rows) and self.rows[-1]["epoch"] == self.flags["n_epochs"]

    @property
    def name(self) -> str:
        return f"{self.group} seed {self.seed}"

    @property
    def age(self) -> tuple[str, int]:
        """Grows from older to newer: the date, then the number that the folder got (``_2``)."""
        attempt = re.search(r"_(\d+)$", self.folder.name)
        return str(self.config.get("date", "")), int(attempt[1]) if attempt else 1


class Result(NamedTuple):
    """What is reported of a run: the scores of one epoch, nan where they were not finite.

    Attributes:
        by: the score that chose the epoch; empty where none did.
        choices: epochs that it chose among.
    """

    run: Run
    epoch: int
    scores: dict[str, float]
    by: str = ""
    choices: int = 1


Groups = dict[str, dict[Seed, Result]]  # group, then seed


# --------------------------------------------------------------------------------------------------
# Folders
# --------------------------------------------------------------------------------------------------
def last_written(folder: Path) -> tuple[dict[str, Any], Row]:
    """The flags of the run in ``folder``, and the last line of its metrics with the epoch.

    Raises:
        ValueError: the folder holds no run, or one without an evaluation.
    """
    try:
        flags = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return flags, json.loads(lines[-1])
    except (OSError, LookupError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no run with scores ({error!r})") from None


def ended_flags(folder: Path) -> dict[str, Any] | None:
    """The flags of the run in ``folder`` if its last epoch is written; None where it is not.

    That the program ended does not say so: a run that was stopped ends well, too.
    """
    try:
        flags, last = last_written(folder)
    except ValueError:
        return None
    return flags if last.get("epoch", -1) == flags.get("n_epochs") else None


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, without a last line that was cut short; none without a file.

    Raises:
        ValueError: another line is no row; names it.
    """
    rows: list[Row] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            int(row["epoch"])
        except (json.JSONDecodeError, LookupError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f"{path} line {number} is no row; remove the line") from error
        else:
            rows.append(row)
    return rows


def read(folder: Path) -> Run:
    """The run in ``folder``, finished or not.

    Raises:
        ValueError: the folder holds no run, or a broken one.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        missing = {"dataset", "group", "seed", "n_epochs"} - set(config["flags"])
    except OSError:
        raise ValueError(f"{folder} holds no run (no config.json)") from None
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder} holds no run (config.json: {error!r})") from None
    if missing:
        raise ValueError(f"{folder} holds no run (config.json lacks {', '.join(sorted(missing))})")
    return Run(folder, config, read_rows(folder / "metrics.jsonl"))


def collect(
    folders: Iterable[Path], wanted: Callable[[str], bool] = lambda group: True
) -> tuple[list[Run], list[str]]:
    """The finished runs, and notes on what was left out.

    Of runs of one dataset, group and seed the newest finished one is taken: by the date in
    config.json, then by the number that its folder got.

    Args:
        wanted: whether a group is asked for; others are passed over in silence.

    Raises:
        ValueError: a folder does not exist, a line of metrics.jsonl is broken, or no run is left.
    """
    found: dict[tuple[str, str, Seed], list[Run]] = {}
    strangers, unfinished, notes = [], [], []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        if not folder.exists():
            raise ValueError(f"{folder} does not exist; give run folders, with config.json in them")
        if not (folder / "config.json").is_file():
            strangers.append(folder.name)
            continue
        run = read(folder)
        if not wanted(run.group):
            continue
        if run.finished:
            found.setdefault((run.dataset, run.group, run.seed), []).append(run)
        else:
            epoch = run.rows[-1]["epoch"] if run.rows else 0
            unfinished.append(f"{run.name} (epoch {epoch} of {run.flags['n_epochs']})")
    if strangers:
        notes.append(f"left out, no run: {', '.join(strangers)}")
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


# --------------------------------------------------------------------------------------------------
# Epochs
# --------------------------------------------------------------------------------------------------
def is_evaluation(name: str) -> bool:
    """Whether a name is of a score that an evaluation gives, and not of the training itself."""
    return not name.startswith(("train/", "miner/", "epoch")) or name.count("/") > 1


def is_fraction(name: str) -> bool:
    """Whether a score is a fraction of which more is better; it is printed in percent."""
    return not NO_FRACTION.search(name)


def is_validation(name: str) -> bool:
    return name.startswith("val/")


def is_test(name: str) -> bool:
    """Whether a score is of what a table reports: test classes, or frozen features' datasets."""
    return is_evaluation(name) and not name.startswith(("val/", "train/"))


def default_rule(runs: Sequence[Run]) -> str:
    """``validation`` where the runs have validation scores, ``last`` where none has.

    Raises:
        ValueError: some have them and others do not: one rule has to do for all.
    """
    having = [run for run in runs if any(map(is_validation, _names(run)))]
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
    """The scores of the epoch that ``rule`` chooses.

    Args:
        rule: ``validation`` or ``test``: where ``score`` is highest, the first of equal ones, as
            ``best_<score>.pt`` is kept; epoch 0, before training, is no candidate of a run that
            trains. ``last``: the last evaluation. A number: that epoch.
        score: by default the first of ``--storage_metrics`` on the classes of the rule.

    Raises:
        ValueError: the run has no such score, no such epoch, or no evaluation.
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
        raise ValueError(f"--epoch_score {score}: more of it is not better; choose another score")
    if (rule == "validation") != is_validation(score):
        raise ValueError(f"--epoch_score {score} is no score of --epoch_by {rule}")
    candidates = [
        row
        for row in rows
        if math.isfinite(_value(row, score)) and (row["epoch"] or not run.flags["n_epochs"])
    ]
    if not candidates:
        raise ValueError(
            f"--epoch_score {score} is no number at any epoch of {run.name}; known, closest first: "
            + ", ".join(closest_first(score, filter(is_evaluation, _names(run))))
        )
    best = max(candidates, key=lambda row: row[score])
    return _result(run, best)._replace(by=score, choices=len(candidates))


def by_group(results: Iterable[Result]) -> Groups:
    """Group, then seed, to result; the groups in the order in which they come."""
    groups: Groups = {}
    for result in results:
        groups.setdefault(result.run.group, {})[result.run.seed] = result
    return groups


def check_scores(results: Sequence[Result], names: Iterable[str]) -> None:
    """See that each result has the scores ``names``.

    Raises:
        ValueError: one lacks a score; names it, and where the run has it.
    """
    for name in names:
        for result in results:
            if name not in result.scores:
                at = [str(row["epoch"]) for row in result.run.rows if name in row]
                raise ValueError(
                    f"--scores {name} is missing in epoch {result.epoch} of {result.run.name}"
                    + (f", which has it at {', '.join(at)}" if at else "")
                    + "; known, closest first: "
                    + ", ".join(closest_first(name, filter(is_evaluation, result.scores)))
                )


def _storage_score(run: Run, rule: str) -> str:
    """The first of ``--storage_metrics`` on the classes of the rule.

    Raises:
        ValueError: the run has no such score.
    """
    metric = (run.flags.get("storage_metrics") or ["e_recall@1"])[0]
    of_rule = is_validation if rule == "validation" else is_test
    for name in _names(run):
        if of_rule(name) and name.endswith(f"/{metric}"):
            return name
    raise ValueError(
        f"--epoch_by {rule}: {run.name} has no {rule} score {metric}; give --epoch_score, or "
        "--epoch_by last"
    )


def _names(run: Run) -> list[str]:
    return list(dict.fromkeys(name for row in run.rows for name in row if name != "epoch"))


def _value(row: Row, name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else float(value)


def _result(run: Run, row: Row) -> Result:
    scores = {name: _value(row, name) for name in row if name != "epoch"}
    return Result(run, int(row["epoch"]), scores)
