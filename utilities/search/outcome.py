"""The outcome of a search: the best flags as a command and a file, trials, importances."""

import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

from utilities.files import atomic_path
from utilities.results.runs import mean_before_training
from utilities.run_files import read_config, read_rows
from utilities.search.space import CommandLine, Flags
from utilities.search.trials import Fold, distinct_trials, run_number

MAX_ROWS = 10  # trials in the table
MIN_SCORES = 4  # distinct scores needed for importances
SEEDS = range(5)  # of the final run


def report(
    study: optuna.Study, fixed: Sequence[str], line: CommandLine, folder: Path, objective: str
) -> str:
    """Return the text printed at the end of a search, and write ``best.json`` into ``folder``."""
    states = [trial.state.name.lower() for trial in distinct_trials(study)]
    tally = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if "complete" not in states:
        return f"{len(states)} trials ({tally}); none has a score. Logs: {folder / 'logs'}"
    flags, length = best_flags(study, fixed, line, folder)
    path = folder / "best.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(flags, indent=2) + "\n", encoding="utf-8")
    command = shlex.join(["python", "main.py", *line.words_of(flags)])
    return "\n".join(
        [
            f"{len(states)} trials ({tally})",
            "",
            table(study, objective),
            "",
            *floor(study, folder, objective),
            *filter(None, [importances(study)]),
            f"best: trial {run_number(study.best_trial)}; {length}; flags: {path}",
            "",
            f"for seed in {' '.join(map(str, SEEDS))}; do",
            f'  {command} --seed "$seed" --resume',
            "done",
        ]
    )


def floor(study: optuna.Study, folder: Path, objective: str) -> list[str]:
    """Return lines with the score before training, in the mean over the best trial's folds."""
    best = study.best_trial
    files = folder.glob(f"*/trial{run_number(best):04d}_fold*/metrics.jsonl")
    means = mean_before_training([read_rows(file) for file in files], objective)
    lines = [f"{title}: {objective} {mean:.4f}" for title, mean in means.items()]
    higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
    worse = [t for t, mean in means.items() if higher and mean >= (best.value or 0.0)]
    if worse:
        lines.append(f"no trial scores above: {', '.join(worse)}")
    return [*lines, ""] if lines else []


def best_flags(
    study: optuna.Study, fixed: Sequence[str], line: CommandLine, folder: Path
) -> tuple[Flags, str]:
    """Return the flags of the final run on all training classes, and a remark on its length.

    It ends at the median of the folds' best epochs, unless its schedule needs the whole length.
    """
    best = study.best_trial
    flags = line.given([*fixed, *line.words(best.params)])
    flags |= {"group": f"{folder.name}_best"}
    flags.pop("seed", None)
    epochs = [Fold(*fold).epoch for fold in best.user_attrs["folds"]]
    run = next(folder.glob(f"*/trial{run_number(best):04d}_fold0"), None)
    ran = read_config(run)["flags"] if run else {}
    text = f"best epochs of its folds: {', '.join(map(str, epochs))} of {ran.get('n_epochs', '?')}"
    if "cosine" in (ran.get("scheduler") or "") or ran.get("max_steps"):
        return flags, f"{text}; its schedule needs the whole length, which is kept"
    flags["n_epochs"] = round(statistics.median(epochs))
    return flags, f"{text}; --n_epochs is their median"


def table(study: optuna.Study, objective: str) -> str:
    """Return the best trials as Markdown."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    scored = [t for t in distinct_trials(study) if t.state == TrialState.COMPLETE]
    scored = list({str(trial.params): trial for trial in reversed(scored)}.values())  # once each
    ranked = sorted(scored, key=lambda trial: (sign * (trial.value or 0.0), run_number(trial)))
    names = list(ranked[0].params)
    rows = [["trial", objective, "folds", *names], ["---:"] * (3 + len(names))]
    for trial in ranked[:MAX_ROWS]:
        folds = " ".join(f"{Fold(*fold).score:.4f}" for fold in trial.user_attrs["folds"])
        drawn = [
            f"{value:.6g}" if isinstance(value, float) else str(value)
            for value in trial.params.values()
        ]
        rows.append([str(run_number(trial)), f"{trial.value:.4f}", folds, *drawn])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def importances(study: optuna.Study) -> str:
    """Return how much score variance each flag explains (fANOVA, Hutter et al., ICML 2014)."""
    values = {t.value for t in distinct_trials(study) if t.state == TrialState.COMPLETE}
    if len(values) < MIN_SCORES or len(study.best_params) < 2:
        return ""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    listed = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return f"share of the scores' variance, from {len(values)} trials: {listed}"
