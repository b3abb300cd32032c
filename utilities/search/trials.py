"""Trials: main.py on each fold, several at once, resumed where they were interrupted."""

import json
import os
import queue
import re
import shlex
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

import parameters
from utilities.interrupt import Interruption
from utilities.registry import closest_first
from utilities.results.runs import ended_flags
from utilities.search.space import ACTIONS, Flags, command_line, words

MOST_FAILURES = 3  # in a row
POLL = 0.2  # seconds between two looks at a run


class Fold(NamedTuple):
    """What one run came to: the best validation score of an epoch, and that epoch, from 1."""

    score: float
    epoch: int


class FailedError(Exception):
    """A run that ended with an error; says which."""


class StoppedError(Exception):
    """A run that was stopped along with the search, and will be gone on with."""


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
        if status == 0 and folder and ended_flags(folder) is not None:
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
