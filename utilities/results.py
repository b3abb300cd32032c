"""Tables from run folders: mean and 95 % confidence interval over seeds, per group.

    python -m utilities.results Training_Results/emoji/* --baseline baseline
    python -m utilities.results Training_Results/emoji/league_* --versus _guided

Reads only ``config.json`` and ``metrics.jsonl``. Scores are those of the last evaluation, so that
no epoch is chosen on the classes that are reported.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utilities.registry import closest_first

# Two-sided 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


HEADLINES = (
    "test/embeds/e_recall@1",
    "test/embeds/mAP@R",
    "test/embeds/wrong_word_similarity@10",
    "test/embeds/wrong_group_share@10",
)


class Run(NamedTuple):
    """One run as its folder tells it."""

    group: str
    seed: int
    epoch: int  # the last that is written
    n_epochs: int  # that were asked for
    scores: dict[str, float]


def last_written(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
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


def read(folder: Path) -> Run:
    """The last scores of the run in ``folder``.

    Raises:
        ValueError: as ``last_written``.
    """
    flags, last = last_written(folder)
    epoch = int(last.pop("epoch"))
    scores = {name: value for name, value in last.items() if isinstance(value, float)}
    return Run(flags["group"], flags["seed"], epoch, flags.get("n_epochs", epoch), scores)


def finished(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs that have come to their end, and the others by name.

    Raises:
        ValueError: a folder holds no run, or none has come to its end.
    """
    runs, others = [], []
    for folder in folders:
        if (folder / "config.json").is_file() and not (folder / "metrics.jsonl").is_file():
            others.append(folder.name)  # it has only just begun
            continue
        run = read(folder)
        if run.epoch == run.n_epochs:
            runs.append(run)
        else:
            others.append(f"{run.group} seed {run.seed}")
    if not runs:
        raise ValueError(f"no run is finished: {', '.join(others)}")
    return runs, others


def headlines(runs: Sequence[Run]) -> Sequence[str]:
    """The scores of a table that names none."""
    if any(name in runs[0].scores for name in HEADLINES):
        return HEADLINES
    return [name for name in runs[0].scores if not name.startswith(("train/", "miner/"))]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval (Student's t); nan for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def table(runs: Sequence[Run], names: Sequence[str], baseline: str | None = None) -> str:
    """A Markdown table in percent: a row per group, a column per score.

    Args:
        baseline: a group; the others then also show their mean difference from it over the seeds
            that both have, which is tighter, since runs of one seed see the same batches.
    """
    groups = by_group(runs, names)
    if baseline is not None and baseline not in groups:
        raise ValueError(f"--baseline {baseline} is not among the groups: {', '.join(groups)}")
    rows = [["group", "seeds", "epochs", *names], ["---", *["---:"] * (len(names) + 2)]]
    for group, by_seed in groups.items():
        epochs = {run.epoch for run in by_seed.values()}
        row = [group, str(len(by_seed)), "/".join(map(str, sorted(epochs)))]
        for name in names:
            cell = percent(*interval([run.scores[name] for run in by_seed.values()]))
            if baseline is not None and group != baseline:
                shared = [seed for seed in by_seed if seed in groups[baseline]]
                gains = [
                    by_seed[seed].scores[name] - groups[baseline][seed].scores[name]
                    for seed in shared
                ]
                if gains:
                    cell += f" ({percent(*interval(gains), sign='+')})"
            row.append(cell)
        rows.append(row)
    return markdown(rows)


def paired_table(runs: Sequence[Run], names: Sequence[str], suffix: str) -> str:
    """A Markdown table in percent: a row per group, beside it the group whose name adds ``suffix``.

    For each score three columns: the group, the other, and their mean difference over the seeds
    that both have. Rows are sorted by the first score, the best first.

    Raises:
        ValueError: no group has a counterpart, or a score is missing.
    """
    groups = by_group(runs, names)
    pairs = [name for name in groups if name + suffix in groups]
    if not pairs:
        raise ValueError(
            f"--versus {suffix}: no group's name is another's with that suffix; groups: "
            + ", ".join(groups)
        )

    def values(group: str, score: str) -> list[float]:
        return [run.scores[score] for run in groups[group].values()]

    header = ["group", "seeds", *(c for name in names for c in (name, suffix.strip("_"), "change"))]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for group in sorted(pairs, key=lambda g: -statistics.fmean(values(g, names[0]))):
        one, other = groups[group], groups[group + suffix]
        shared = [seed for seed in one if seed in other]
        row = [group, str(len(shared))]
        for name in names:
            gains = [other[seed].scores[name] - one[seed].scores[name] for seed in shared]
            row += [
                percent(*interval(values(group, name))),
                percent(*interval(values(group + suffix, name))),
                percent(*interval(gains), sign="+") if gains else "",
            ]
        rows.append(row)
    return markdown(rows)


def by_group(runs: Sequence[Run], names: Sequence[str]) -> dict[str, dict[int, Run]]:
    """Group, then seed, to run.

    Raises:
        ValueError: a run lacks one of the scores ``names``.
    """
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        groups.setdefault(run.group, {})[run.seed] = run
    for name in names:
        missing = [f"{run.group} seed {run.seed}" for run in runs if name not in run.scores]
        if missing:
            raise ValueError(
                f"--scores {name} is missing in the last row of {', '.join(missing)}; known: "
                + ", ".join(closest_first(name, runs[0].scores))
            )
    return groups


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def percent(mean: float, half: float, sign: str = "") -> str:
    """``71.32 ± 0.41`` from fractions."""
    return f"{100 * mean:{sign}.2f}" + ("" if math.isnan(half) else f" ± {100 * half:.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the run folders that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--baseline", help="group to compare the others with, seed by seed")
    parser.add_argument(
        "--versus",
        metavar="SUFFIX",
        help="put each group beside the one whose name adds this, such as _guided",
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        help=f"names as in metrics.csv (default: {' '.join(HEADLINES)}; where a run has none of "
        "them, all that it was evaluated by)",
    )
    args = parser.parse_args(argv)
    try:
        runs, left_out = finished(args.runs)
        if left_out:
            print(f"left out, not finished: {', '.join(left_out)}", file=sys.stderr)
        names = args.scores or headlines(runs)
        if args.versus:
            print(paired_table(runs, names, args.versus))
        else:
            print(table(runs, names, args.baseline))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
