"""What a search came to: the best flags as a command and a file, trials, importances."""

import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

import parameters
from utilities.files import atomic_path
from utilities.results.runs import last_written
from utilities.search.space import Flags, command_line, words
from utilities.search.trials import Fold, counted, number

N_SHOWN = 10  # trials in the table
FEWEST_SCORES = 4  # that differ, to say what they depend on
SEEDS = range(5)  # of the final run


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
