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
import fcntl
import json
import os
import queue
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DatabaseError

import parameters
from utilities.files import atomic_path
from utilities.finished import PLACES
from utilities.interrupt import Interruption
from utilities.registry import closest_first
from utilities.results.runs import last_written

PROGRAM = (sys.executable, str(Path(parameters.__file__).with_name("main.py")))

# Flags that the search gives itself, so that neither the command line nor the space may.
OWN = frozenset(
    ("cv_folds", "cv_fold", "use_tv_split", "tv_split_by_samples", "tv_split_perc", "group",
     "savename", "resume", "skip_finished", "evaluate_only", "checkpoint", "dry_run",
     "no_test_metrics")
)  # fmt: skip
FIXED = OWN | PLACES | {  # what a trial may not differ in
    "config", "dataset", "evaltypes", "evaluations", "help", "no_report", "no_train_metrics",
    "seed", "storage_metrics",
}  # fmt: skip
MOST_FAILURES = 3  # in a row
N_SHOWN = 10  # trials in the table
FEWEST_SCORES = 4  # that differ, to say what they depend on
SEEDS = range(5)  # of the final run
POLL = 0.2  # seconds between two looks at a run

Flags = dict[str, Any]  # by their names in parameters.parse's answer


class Fold(NamedTuple):
    """What one run came to: the best validation score of an epoch, and that epoch, from 1."""

    score: float
    epoch: int


class FailedError(Exception):
    """A run that ended with an error; says which."""


class StoppedError(Exception):
    """A run that was stopped along with the search, and will be gone on with."""


# --------------------------------------------------------------------------------------------------
# The space
# --------------------------------------------------------------------------------------------------
ACTIONS = {
    option.removeprefix("--"): action
    for action in parameters.build_parser()._actions
    for option in action.option_strings
    if option.startswith("--")
}


def read_space(texts: Sequence[str], fixed: Sequence[str]) -> dict[str, BaseDistribution]:
    """What to draw each flag from, by the flag's name without dashes.

    Args:
        texts: ``lr=1e-6..1e-3`` (a range), ``lr=1e-6..1e-3:log`` (of its logarithm),
            ``batch_mining=distance,semihard`` (a choice; of a flag that takes several values, each
            choice is values with spaces between; of a switch, the choices are on and off). A range
            of a flag that takes whole numbers is of whole numbers.
        fixed: the flags that all trials share; each end and choice must go with them.

    Raises:
        ValueError: a text of another form, an unknown flag, or one that cannot be searched.
        SystemExit: main.py's parser refuses an end or a choice; it says why.
    """
    ends: dict[str, list[str]] = {}
    logarithmic = {}
    for text in texts:
        name, equals, values = text.removeprefix("--").partition("=")
        if not equals or not values:
            raise ValueError(f"--space {text}: give {name}=low..high, low..high:log or a,b,c")
        if name not in ACTIONS:
            near = ", ".join(f"--{known}" for known in closest_first(name, ACTIONS)[:3])
            raise ValueError(f"--space {text}: main.py has no --{name}; the nearest are {near}")
        if ACTIONS[name].dest in FIXED:
            raise ValueError(f"--space {text}: --{name} is the same for all trials; leave it out")
        if name in ends:
            raise ValueError(f"--space {text}: --{name} is there twice; give it once")
        if ACTIONS[name].dest in parameters.given(fixed):
            raise ValueError(f"--space {text}: --{name} is given after -- as well; drop one")
        interval = re.fullmatch(r"([^,]+?)\.\.([^,]+?)(:log)?", values)
        if interval:
            logarithmic[name] = bool(interval[3])
        ends[name] = [interval[1], interval[2]] if interval else values.split(",")
        if ACTIONS[name].nargs == 0 and set(ends[name]) != {"on", "off"}:
            raise ValueError(f"--space {text}: --{name} is a switch; give {name}=on,off")

    first = {name: listed[0] for name, listed in ends.items()}
    distributions: dict[str, BaseDistribution] = {}
    for name, listed in ends.items():
        read = [
            vars(parameters.parse([*fixed, *words(first | {name: text})]))[ACTIONS[name].dest]
            for text in listed
        ]
        distributions[name] = (
            distribution(name, read, logarithmic[name])
            if name in logarithmic
            else CategoricalDistribution(listed)
        )
    return distributions


def distribution(name: str, ends: Sequence[Any], log: bool) -> BaseDistribution:
    """The range between two ends as the parser read them, whole numbers where it reads these.

    Raises:
        ValueError: they are no numbers, not in order, or not above 0 for a logarithm.
    """
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise ValueError(f"--space {name}: --{name} takes no number; list its values: {name}=a,b")
    low, high = ends
    if low >= high:
        raise ValueError(f"--space {name}: {low:g} is not below {high:g}")
    if log and low <= 0:
        raise ValueError(f"--space {name}: {low:g} has no logarithm; begin above 0 or drop :log")
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=log)


def words(chosen: Mapping[str, Any]) -> list[str]:
    """The words of a command line from flags by name: texts of the space, or a trial's values.

    Numbers are written with six digits: more say nothing, and a command has to be read.
    """
    found: list[str] = []
    for name, value in chosen.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        if ACTIONS[name].nargs == 0:
            found += [f"--{name}"] if text == "on" else []
        elif ACTIONS[name].nargs is not None:
            found += [f"--{name}", *text.split()]
        else:
            found += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return found


def command_line(flags: Mapping[str, Any]) -> list[str]:
    """The words that ``parameters.given`` reads ``flags`` from."""
    names = {action.dest: name for name, action in ACTIONS.items()}
    texts = {}
    for flag, value in flags.items():
        if isinstance(value, bool):
            value = "on" if value else "off"
        texts[names[flag]] = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return words(texts)


# --------------------------------------------------------------------------------------------------
# Runs
# --------------------------------------------------------------------------------------------------
class Search:
    """Runs trials, ``jobs`` at once, the folds of each one after the other.

    Args:
        study: where trials are drawn and kept.
        space: what a trial's flags are drawn from, by name.
        fixed: words of the command line that all runs share.
        folder: of logs and runs, ``<folder>/<dataset>/trial0007_fold0``.
        folds: K, runs per trial.
        objective: score of metrics.jsonl, such as ``val/embeds/e_recall@1``.
        minimize: less of it is better.
        gpus: CUDA devices that runs are spread over; none: as ``--gpu`` says.
        prune: end a trial whose folds so far are below the median.
        keep_checkpoints: of finished runs; they take far more room than everything else.
        program: what runs main.py.
        lock: file that runs keep open, so that they hold the study's lock when this process dies.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Mapping[str, BaseDistribution],
        fixed: Sequence[str],
        *,
        folder: Path,
        folds: int,
        objective: str,
        minimize: bool,
        jobs: int,
        gpus: Sequence[int],
        prune: bool,
        keep_checkpoints: bool,
        program: Sequence[str],
        lock: IO[str],
    ) -> None:
        self.study = study
        self.space = dict(space)
        self.fixed = list(fixed)
        self.folder = folder
        self.folds = folds
        self.objective = objective
        self.best_of = min if minimize else max
        self.jobs = jobs
        self.gpus: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for job in range(jobs):
            self.gpus.put(gpus[job % len(gpus)] if gpus else None)
        self.prune = prune
        self.keep_checkpoints = keep_checkpoints
        self.program = list(program)
        self.lock = lock
        self.interruption = Interruption()
        self.hurry = False  # end runs at once

    def run(self, n_trials: int) -> str | None:
        """Search until the study has ``n_trials``.

        Returns:
            why it ended before; None where it did not.
        """
        self.take_up()
        running: dict[Future[float], Trial] = {}
        failures = 0
        with self.interruption, ThreadPoolExecutor(self.jobs) as pool:
            while True:
                going_on = failures < MOST_FAILURES and self.interruption.asked is None
                while going_on and len(running) < self.jobs and self.n_begun() < n_trials:
                    trial = self.study.ask(self.space)
                    running[pool.submit(self.score, trial)] = trial
                if not running:
                    break
                try:
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        failed = self.tell(running.pop(future), future)
                        failures = 0 if failed is False else failures + bool(failed)
                except BaseException:  # a second Ctrl-C, a full disk
                    self.hurry = True
                    raise
        if self.interruption.asked:
            return f"stopped by {self.interruption.asked}; the same command goes on"
        if failures >= MOST_FAILURES:
            return f"{failures} failures in a row, the last ones above; no further trial is begun"
        return None

    def take_up(self) -> None:
        """Put what a killed search left running back in line, with the same flags and runs."""
        for left in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.enqueue_trial(left.params, user_attrs={"runs": number(left)})
            self.study.tell(left.number, state=TrialState.FAIL)  # the lock is ours: nobody runs it

    def n_begun(self) -> int:
        """Trials of the study, whatever came of them; one that was taken up again counts once."""
        return sum(trial.state != TrialState.WAITING for trial in counted(self.study))

    def score(self, trial: Trial) -> float:
        """The mean over the folds of a trial.

        Raises:
            FailedError, StoppedError: of a run.
            optuna.TrialPruned: the folds so far are below the median of other trials'.
        """
        for other in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if other.params == trial.params:
                assert other.value is not None
                print(f"trial {number(trial)}: has the flags of trial {number(other)}", flush=True)
                trial.set_user_attr("folds", other.user_attrs["folds"])
                return other.value
        done: list[Fold] = []
        gpu = self.gpus.get()
        try:
            for fold in range(self.folds):
                done.append(self.one_fold(trial, fold, gpu))
                trial.set_user_attr("folds", done)
                trial.report(mean(done), fold)
                if self.prune and len(done) < self.folds and trial.should_prune():
                    raise optuna.TrialPruned
        finally:
            self.gpus.put(gpu)
        return mean(done)

    def tell(self, trial: Trial, ended: Future[float]) -> bool | None:
        """Keep how a trial ended; returns whether it failed, None where that is not known yet."""
        try:
            value = ended.result()
        except StoppedError:
            return None  # stays as running, so that it is taken up again
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            done = trial.user_attrs["folds"]
            print(f"trial {number(trial)}: pruned after {len(done)} of {self.folds} folds")
            return False
        except FailedError as error:
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            print(f"trial {number(trial)}: failed: {error}", flush=True)
            return True
        self.study.tell(trial, value)
        chosen = " ".join(words(trial.params))
        print(f"trial {number(trial)}: {value:.4f} of {chosen}", flush=True)
        return False

    def one_fold(self, trial: Trial, fold: int, gpu: int | None) -> Fold:
        """Run main.py on one fold, or go on with it, and read its score.

        Raises:
            FailedError, StoppedError.
        """
        name = f"trial{number(trial):04d}_fold{fold}"
        cores = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        flags = trial_flags(
            self.fixed, trial.params, self.objective, self.folder, fold=fold, folds=self.folds
        )
        flags |= {"group": f"{self.folder.name}_{name.partition('_')[0]}", "savename": name}
        flags["kernels"] = min(cores, flags.get("kernels", ACTIONS["kernels"].default))
        if gpu is not None:
            flags["gpu"] = gpu
        log = self.folder / "logs" / f"{name}.txt"
        log.parent.mkdir(exist_ok=True)
        status, said = self.execute(command_line(flags), log, cores)
        folder = next(self.folder.glob(f"*/{name}"), None)
        if status == 0 and folder and is_finished(folder):
            found = self.best_epoch(folder)
            if not self.keep_checkpoints:
                for checkpoint in folder.glob("*.pt"):
                    checkpoint.unlink()
            print(
                f"trial {number(trial)}, fold {fold + 1} of {self.folds}: {found.score:.4f} in "
                f"epoch {found.epoch}",
                flush=True,
            )
            return found
        if self.interruption.asked:
            raise StoppedError
        raise FailedError(f"{last_error(said, status)} ({log})")

    def execute(self, flags: Sequence[str], log: Path, cores: int) -> tuple[int, str]:
        """Run the program to its end, or ask it to stop when the search is.

        Returns:
            its exit status, and what it said; the end of ``log`` has that, under the command.
        """
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ}
        with log.open("a+", encoding="utf-8", errors="replace", newline="") as output:
            output.write(shlex.join(["python", "main.py", *flags]) + "\n")
            output.flush()
            begin = output.tell()
            process = subprocess.Popen(
                [*self.program, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C comes through us, once
                pass_fds=[self.lock.fileno()],
            )
            told = False
            while process.poll() is None:
                if self.hurry:
                    process.kill()
                elif self.interruption.asked and not told:
                    process.terminate()  # it saves and ends
                    told = True
                time.sleep(POLL)
            output.seek(begin)
            return process.returncode, output.read()

    def best_epoch(self, folder: Path) -> Fold:
        """The best score of the objective among a run's epochs.

        Raises:
            FailedError: no epoch has it.
        """
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        scored = [
            Fold(row[self.objective], row["epoch"])
            for row in rows
            if row["epoch"] and row.get(self.objective) is not None
        ]
        if not scored:
            known = [name for name in rows[-1] if name.startswith("val/")]
            raise FailedError(
                f"{folder} has no {self.objective}; known, closest first: "
                + ", ".join(closest_first(self.objective, known))
            )
        return self.best_of(scored, key=lambda fold: fold.score)


def trial_flags(
    fixed: Sequence[str],
    params: Mapping[str, Any],
    objective: str,
    folder: Path,
    *,
    fold: int,
    folds: int,
) -> Flags:
    """The flags of one run: those given, those drawn, and those of a fold; no test class is read.

    ``objective`` is evaluated whatever else is, and checkpoints are chosen by it.
    """
    asked = parameters.parse(fixed)
    _, evaltype, metric = objective.split("/")
    return {
        **parameters.given([*fixed, *words(params)]),
        "cv_folds": folds,
        "cv_fold": fold,
        "save_path": str(folder),
        "resume": True,
        "no_test_metrics": True,
        "no_train_metrics": True,
        "no_report": True,
        "evaluations": ["retrieval"],
        "evaltypes": list(dict.fromkeys([evaltype, *(asked.evaltypes or [])])),
        "storage_metrics": [metric],
    }


def is_finished(folder: Path) -> bool:
    """Whether the last epoch of a run is written; one that was stopped ends well, too."""
    try:
        flags, last = last_written(folder)
    except ValueError:
        return False
    return last.get("epoch") == flags.get("n_epochs")


def last_error(said: str, status: int) -> str:
    """The last line of a run's output that speaks of an error, else the last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|\w+Error\b", line)]
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return [f"no word, {how}", *lines, *errors][-1] + (f", {how}" if status < 0 and lines else "")


def number(trial: Trial | FrozenTrial) -> int:
    """Which trial: the number under which its runs began, before any interruption."""
    return int(trial.user_attrs.get("runs", trial.number))


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a study; of one that was interrupted, what it was taken up as."""
    return list({number(trial): trial for trial in study.get_trials(deepcopy=False)}.values())


def mean(folds: Sequence[Fold]) -> float:
    return statistics.fmean(fold.score for fold in folds)


# --------------------------------------------------------------------------------------------------
# What came out
# --------------------------------------------------------------------------------------------------
def best_flags(study: optuna.Study, fixed: Sequence[str], folder: Path) -> tuple[Flags, str]:
    """The flags of the final run on all training classes, and a word on how long it is.

    No class is left to choose its epoch by, so it ends where the folds were best, by their median,
    unless its schedule is made for the whole length.
    """
    best = study.best_trial
    flags = parameters.given([*fixed, *words(best.params)])
    flags |= {"group": f"{folder.name}_best"}
    flags.pop("seed", None)
    epochs = [Fold(*fold).epoch for fold in best.user_attrs["folds"]]
    run = next(folder.glob(f"*/trial{number(best):04d}_fold0"), None)
    ran = last_written(run)[0] if run else {}
    said = f"best epochs of its folds: {', '.join(map(str, epochs))} of {ran.get('n_epochs', '?')}"
    if "cosine" in (ran.get("scheduler") or "") or ran.get("max_steps"):
        return flags, f"{said}; its schedule is of the whole length, which is kept"
    flags["n_epochs"] = round(statistics.median(epochs))
    return flags, f"{said}; --n_epochs is their median"


def table(study: optuna.Study, objective: str) -> str:
    """The best trials as Markdown: number, mean over folds, each fold, the flags drawn."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    scored = [t for t in counted(study) if t.state == TrialState.COMPLETE]
    scored = list({str(trial.params): trial for trial in reversed(scored)}.values())  # once each
    done = sorted(scored, key=lambda trial: (sign * (trial.value or 0.0), number(trial)))
    names = list(done[0].params)
    rows = [["trial", objective, "folds", *names], ["---:"] * (3 + len(names))]
    for trial in done[:N_SHOWN]:
        folds = " ".join(f"{Fold(*fold).score:.4f}" for fold in trial.user_attrs["folds"])
        drawn = [
            f"{value:.6g}" if isinstance(value, float) else str(value)
            for value in trial.params.values()
        ]
        rows.append([str(number(trial)), f"{trial.value:.4f}", folds, *drawn])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def importances(study: optuna.Study) -> str:
    """How much of the variance of scores each flag accounts for (fANOVA, Hutter et al. 2014).

    Nothing where one flag was searched, or too few trials differ.
    """
    values = {t.value for t in counted(study) if t.state == TrialState.COMPLETE}
    if len(values) < FEWEST_SCORES or len(study.best_params) < 2:
        return ""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    said = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return f"share of the scores' variance, from {len(values)} trials: {said}"


def report(study: optuna.Study, fixed: Sequence[str], folder: Path, objective: str) -> str:
    """All that is said at the end; writes ``best.json`` into ``folder``."""
    states = [trial.state.name.lower() for trial in counted(study)]
    tally = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if "complete" not in states:
        return f"{len(states)} trials ({tally}); none has a score. Logs: {folder / 'logs'}"
    flags, length = best_flags(study, fixed, folder)
    path = folder / "best.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(flags, indent=2) + "\n", encoding="utf-8")
    command = shlex.join(["python", "main.py", *command_line(flags)])
    return "\n".join(
        [
            f"{len(states)} trials ({tally})",
            "",
            table(study, objective),
            "",
            *filter(None, [importances(study)]),
            f"best: trial {number(study.best_trial)}; {length}; flags: {path}",
            "",
            f"for seed in {' '.join(map(str, SEEDS))}; do",
            f'  {command} --seed "$seed" --resume',
            "done",
        ]
    )


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------
@contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold a file's lock; processes that are given it hold it, too, until the last has ended.

    Raises:
        ValueError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{path} is held by another search of this study, or by runs that outlived one; "
                "wait until they end, or end them"
            ) from None
        yield lock


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
        with locked(storage.with_name(f".{storage.name}.{args.study}.lock")) as lock:
            folder.mkdir(parents=True, exist_ok=True)
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
