"""Draws docs/learning_curve.png and prints its table: what words add as labelled classes grow.

    bash language_guidance_benchmark_runs.sh emoji_curve
    python -m tests.benchmarks.learning_curve_picture Training_Results/emoji/curve_*

A run's group is curve_<training classes>_<arm>. Differences are from the arm "none" of the same
classes, paired by seed; intervals are 95 % of Student's t over seeds.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student

from utilities.results.runs import collect

SCORES = {
    "Recall@1": "test/embeds/e_recall@1",
    "mAP@R": "test/embeds/mAP@R",
    "word similarity": "test/embeds/wrong_word_similarity@10",
    "own subgroup": "test/embeds/wrong_group_share@10",
    "word recall@1": "test/words/word_recall@1",
    "word mAP": "test/words/word_mAP",
}
DRAWN = ("Recall@1", "mAP@R", "own subgroup", "word mAP")
ARMS = {  # colours that the colour-blind can tell apart
    "match": ("class names, L_match", "#0072b2", "-"),
    "match_permuted": ("permuted names", "#0072b2", ":"),
    "proxy": ("class names, L_proxy", "#d55e00", "-"),
    "proxy_permuted": ("permuted names", "#d55e00", ":"),
    "proxy_free": ("free class vectors", "#777777", "--"),
    "both": ("class names, both", "#009e73", "-"),
}

BySeed = dict[int, float]
Table = dict[tuple[int, str], dict[str, BySeed]]  # (classes, arm) -> score -> seed -> percent


class Estimate(NamedTuple):
    mean: float
    half: float  # of the interval; NaN of one seed
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values over seeds, and half the width of its 95 % interval."""
    n = len(values)
    half = np.nan
    if n > 1:
        half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return Estimate(float(np.mean(values)), half, n)


def difference(arm: BySeed, none: BySeed) -> Estimate:
    """Return the mean difference, paired by the seeds that both have."""
    return estimate([arm[seed] - none[seed] for seed in sorted(arm.keys() & none.keys())])


def read(folders: Sequence[Path]) -> Table:
    """Return the last scores of finished runs, in percent."""
    runs, notes = collect(folders, lambda group: group.startswith("curve_"))
    print(*notes, sep="\n")
    table: Table = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        match = re.fullmatch(r"curve_(\d+)_(\w+)", run.group)
        if match is None:
            raise ValueError(f"{run.folder}: a group is curve_<classes>_<arm>; got {run.group}")
        for score, name in SCORES.items():
            table[int(match[1]), match[2]][score][int(run.seed)] = 100 * run.rows[-1][name]
    return table


def lines(table: Table) -> list[str]:
    """Return the table in Markdown: scores of "none", and differences from it."""
    rows = ["| classes | arm | seeds | " + " | ".join(SCORES) + " |"]
    rows.append("|---:|---|---:|" + "---:|" * len(SCORES))
    for classes in sorted({classes for classes, _ in table}):
        for arm in ("none", *ARMS):
            if (of_arm := table.get((classes, arm))) is None:
                continue
            cells, n = [], 0
            for score in SCORES:
                if arm == "none":
                    found, sign = estimate(list(of_arm[score].values())), ""
                else:
                    found, sign = difference(of_arm[score], table[classes, "none"][score]), "+"
                n = found.n
                clear = sign and abs(found.mean) > found.half
                cell = f"{found.mean:{sign}.2f} ± {found.half:.2f}".replace("-", "−")
                cells.append(f"**{cell}**" if clear else cell)
            rows.append(f"| {classes} | {arm} | {n} | " + " | ".join(cells) + " |")
    return rows


def draw(table: Table, path: Path) -> None:
    """Draw the differences over the number of training classes."""
    sizes = sorted({classes for classes, _ in table})
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for panel, score in zip(panels, DRAWN, strict=True):
        panel.axhline(0, color="black", linewidth=0.8)
        for shift, (arm, (label, colour, style)) in enumerate(ARMS.items()):
            points = {n: table[n, arm][score] for n in sizes if (n, arm) in table}
            if not points:
                continue
            found = [difference(of, table[n, "none"][score]) for n, of in points.items()]
            # Beside each other, so that no interval hides another.
            places = np.array([*points]) * 1.05 ** (shift - len(ARMS) / 2)
            panel.errorbar(
                places, [e.mean for e in found], [e.half for e in found],
                label=label, color=colour, linestyle=style, marker="o", markersize=3.5,
                capsize=2, linewidth=1.4,
            )  # fmt: skip
        panel.set(xscale="log", title=score, xlabel="training classes")
        panel.set_xticks(sizes, [str(n) for n in sizes])
        panel.minorticks_off()
        panel.set_ylabel("points above no words")
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.learning_curve_picture")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("docs/learning_curve.png"))
    args = parser.parse_args(argv)
    table: Mapping = read(args.runs)
    print(*lines(dict(table)), sep="\n")
    draw(dict(table), args.out)
    print(f"drawn: {args.out}")


if __name__ == "__main__":
    main()
