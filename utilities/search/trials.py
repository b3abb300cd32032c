"""Trials: main.py on each fold, several at once, resumed after an interruption."""

import os
import queue
import re
import shlex
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DatabaseError

from utilities.interrupt import Interruption
from utilities.registry import closest_first
from utilities.run_files import finished_flags, read_rows
from utilities.search.space import CommandLine, Flags

MAX_FAILURES = 3  # in a row
POLL = 0.2  # seconds between two looks at a run


class Fold(NamedTuple):
    """The best validation score of a run, and its epoch, counted from 1."""

    score: float
    epoch: int


class FailedError(Exception):
    """A run ended with an error."""


class StoppedError(Exception):
    """A run was stopped along with the search and will be resumed."""


@contextmanager
def stored(storage: Path) -> Iterator[None]:
    """Turn errors of the database, as on a full disk, into an OSError that names its file."""
    try:
        yield
    except (DatabaseError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise OSError(
            f"--storage {storage} cannot be used ({reason}); give another, or repeat the command "
            "once it can"
        ) from error


def open_study(
    storage: Path, name: str, settings: Mapping[str, Any], *, seed: int, minimize: bool
) -> optuna.Study:
    """Return the study of that name in a SQLite file; its ``settings`` must not have changed."""
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{storage.resolve()}",
            study_name=name,
            load_if_exists=True,
            direction="minimize" if minimize else "maximize",
            pruner=optuna.pruners.MedianPruner(),
        )
    except RuntimeError as error:  # of another version of Optuna
        raise ValueError(f"--storage {storage} cannot be used ({error}); give another") from None
    before = study.user_attrs.get("asked")
    if before is None:
        study.set_user_attr("asked", dict(settings))
    elif before != settings:
        differ = [f"{flag} {before.get(flag)} (now {settings[flag]})" for flag in settings
                  if before.get(flag) != settings[flag]]  # fmt: skip
        raise ValueError(
            f"--study {name} was started with {', '.join(differ)}; repeat these or give another "
            "--study"
        )
    # Seeded by the number of trials too: the seed alone would repeat the first draws.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 1000003 * len(study.trials))
    return study


@dataclass(kw_only=True)
class Search:
    """Runs trials, ``jobs`` at once, the folds of each in turn."""

    study: optuna.Study  # draws and stores the trials
    space: Mapping[str, BaseDistribution]  # by flag
    fixed: Sequence[str]  # words of the command line that all runs share
    line: CommandLine  # of the program
    program: Sequence[str]  # the words that run main.py
    folder: Path  # of logs and runs, <folder>/<dataset>/trial0007_fold0
    folds: int  # K, runs per trial
    objective: str  # score in metrics.jsonl, such as val/embeds/e_recall@1
    minimize: bool  # lower is better
    jobs: int  # trials at once
    gpus: Sequence[int]  # CUDA devices to spread the jobs over; empty to follow --gpu
    prune: bool  # end a trial whose folds so far are below the median
    keep_checkpoints: bool  # of finished runs, which take most of the disk space
    lock: IO[str]  # runs keep it open, so that they hold the study's lock if this process dies

    def __post_init__(self) -> None:
        self.free_gpus: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for job in range(self.jobs):
            self.free_gpus.put(self.gpus[job % len(self.gpus)] if self.gpus else None)
        self.interruption = Interruption()
        self.kill_runs = False

    def run(self, n_trials: int) -> str | None:
        """Search until the study has ``n_trials``; return why it ended early, or None."""
        self.requeue_interrupted()
        running: dict[Future[float], Trial] = {}
        failures = 0
        with self.interruption, ThreadPoolExecutor(self.jobs) as pool:
            while True:
                starting = failures < MAX_FAILURES and self.interruption.signal is None
                while starting and len(running) < self.jobs and self.n_started() < n_trials:
                    trial = self.study.ask(dict(self.space))
                    running[pool.submit(self.score, trial)] = trial
                if not running:
                    break
                try:
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        failed = self.record(running.pop(future), future)
                        failures = 0 if failed is False else failures + bool(failed)
                except BaseException:  # a second Ctrl-C, a full disk
                    self.kill_runs = True
                    raise
        if self.interruption.signal:
            return f"stopped by {self.interruption.signal}; repeat the command to resume"
        if failures >= MAX_FAILURES:
            return f"stopped after {failures} failures in a row; their errors are above"
        return None

    def requeue_interrupted(self) -> None:
        """Queue trials that a killed search left running, with the same flags and runs."""
        for left in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.enqueue_trial(left.params, user_attrs={"runs": run_number(left)})
            self.study.tell(left.number, state=TrialState.FAIL)  # the lock is ours: nobody runs it

    def n_started(self) -> int:
        return sum(trial.state != TrialState.WAITING for trial in distinct_trials(self.study))

    def score(self, trial: Trial) -> float:
        """Return the mean score over the folds of a trial; raise if it failed or was pruned."""
        for other in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if other.params == trial.params:
                assert other.value is not None
                say(trial, f"has the flags of trial {run_number(other)}")
                trial.set_user_attr("folds", other.user_attrs["folds"])
                return other.value
        done: list[Fold] = []
        gpu = self.free_gpus.get()
        try:
            for fold in range(self.folds):
                done.append(self.run_fold(trial, fold, gpu))
                trial.set_user_attr("folds", done)
                trial.report(mean(done), fold)
                if self.prune and len(done) < self.folds and trial.should_prune():
                    raise optuna.TrialPruned
        finally:
            self.free_gpus.put(gpu)
        return mean(done)

    def record(self, trial: Trial, ended: Future[float]) -> bool | None:
        """Store how a trial ended; return whether it failed, None if it was stopped."""
        try:
            value = ended.result()
        except StoppedError:
            return None  # stays in the running state, to be queued again
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            say(trial, f"pruned after {len(trial.user_attrs['folds'])} of {self.folds} folds")
            return False
        except FailedError as error:
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            say(trial, f"failed: {error}")
            return True
        self.study.tell(trial, value)
        say(trial, f"{value:.4f} with {' '.join(self.line.words(trial.params))}")
        return False

    def run_fold(self, trial: Trial, fold: int, gpu: int | None) -> Fold:
        """Run main.py on one fold, or resume it."""
        name = f"trial{run_number(trial):04d}_fold{fold}"
        cores = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        flags = trial_flags(self.line, self.fixed, self.objective, self.folder, fold, self.folds)
        flags |= self.line.given(self.line.words(trial.params))
        flags |= {"group": f"{self.folder.name}_{name.partition('_')[0]}", "savename": name}
        flags["kernels"] = min(cores, flags.get("kernels", self.line.flags["kernels"].default))
        if gpu is not None:
            flags["gpu"] = gpu
        log = self.folder / "logs" / f"{name}.txt"
        log.parent.mkdir(exist_ok=True)
        status, output = self.execute(self.line.words_of(flags), log, cores)
        folder = next(self.folder.glob(f"*/{name}"), None)
        if status == 0 and folder and finished_flags(folder) is not None:
            best = self.best_epoch(folder)
            if not self.keep_checkpoints:
                for checkpoint in folder.glob("*.pt"):
                    checkpoint.unlink()
            text = f"fold {fold + 1} of {self.folds}: {best.score:.4f} in epoch {best.epoch}"
            say(trial, text)
            return best
        if self.interruption.signal:
            raise StoppedError
        raise FailedError(f"{last_error(output, status)} ({log})")

    def execute(self, words: Sequence[str], log: Path, cores: int) -> tuple[int, str]:
        """Run the program, terminated with the search; return its exit status and output."""
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ}
        with log.open("a+", encoding="utf-8", errors="replace", newline="") as output:
            output.write(shlex.join(["python", "main.py", *words]) + "\n")
            output.flush()
            begin = output.tell()
            process = subprocess.Popen(
                [*self.program, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C comes through us, once
                pass_fds=[self.lock.fileno()],
            )
            terminated = False
            while process.poll() is None:
                if self.kill_runs:
                    process.kill()
                elif self.interruption.signal and not terminated:
                    process.terminate()  # it saves and ends
                    terminated = True
                time.sleep(POLL)
            output.seek(begin)
            return process.returncode, output.read()

    def best_epoch(self, folder: Path) -> Fold:
        rows = read_rows(folder / "metrics.jsonl")
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
        return (min if self.minimize else max)(scored, key=lambda fold: fold.score)


def trial_flags(
    line: CommandLine, fixed: Sequence[str], objective: str, folder: Path, fold: int, folds: int
) -> Flags:
    """Return the flags of one run before any are drawn; no test class is read."""
    _, kind, metric = objective.split("/")
    evaltypes = [] if kind == "words" else [kind]  # words search the first of the run's
    return {
        **line.given(fixed),
        "cv_folds": folds,
        "cv_fold": fold,
        "save_path": str(folder),
        "resume": True,
        "no_test_metrics": True,
        "no_train_metrics": True,
        "no_report": True,
        "evaluations": ["retrieval"],
        "evaltypes": list(dict.fromkeys([*evaltypes, *(line.parse(fixed)["evaltypes"] or [])])),
        "storage_metrics": [metric],
    }


def last_error(output: str, status: int) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|\w+Error\b", line)]
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return [f"no output, {how}", *lines, *errors][-1] + (f", {how}" if status < 0 and lines else "")


def run_number(trial: Trial | FrozenTrial) -> int:
    """Return the number in the names of a trial's runs: the one before any interruption."""
    return int(trial.user_attrs.get("runs", trial.number))


def distinct_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study; of one that was resumed, only its last attempt."""
    return list({run_number(trial): trial for trial in study.get_trials(deepcopy=False)}.values())


def mean(folds: Sequence[Fold]) -> float:
    return statistics.fmean(fold.score for fold in folds)


def say(trial: Trial, text: str) -> None:
    print(f"trial {run_number(trial)}: {text}", flush=True)
