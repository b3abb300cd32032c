"""Learning curves of groups of runs, with confidence bands over their seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utilities.files import atomic_path
from utilities.plots import drawable, label_panel, new_figure
from utilities.results.runs import Groups, is_fraction
from utilities.results.significance import interval

FORMATS = (".png", ".svg", ".pdf")
COLUMNS = 3
PANEL = (3.6, 2.75)  # inches
LINE = 0.22  # inches, of the legend or the caption
# Okabe and Ito, *Color Universal Design*, 2008: distinguishable with any colour vision. Without
# their yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Repeated colours get other dashes and markers.
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
MAX_GROUPS = len(COLOURS) * len(DASHES)
REACH = 1.0  # bands are cut beyond this many times the span of the means


class Curve(NamedTuple):
    """A score of a group at the epochs that all its runs evaluated, in percent if a fraction."""

    epochs: list[int]
    means: list[float]
    halves: list[float]
    n_seeds: int


class Panel(NamedTuple):
    heading: str
    unit: str
    curves: dict[str, Curve]


def curve(groups: Groups, group: str, name: str) -> Curve:
    """Return the curve of a group in a score, empty if its runs share no epoch."""
    scale = 100 if is_fraction(name) else 1
    runs = [
        {row["epoch"]: scale * row[name] for row in result.run.rows if row.get(name) is not None}
        for result in groups[group].values()
    ]
    epochs = sorted(set.intersection(*map(set, runs)))
    intervals = [interval([run[epoch] for run in runs]) for epoch in epochs]
    means, halves = [mean for mean, _ in intervals], [half for _, half in intervals]
    return Curve(epochs, means, halves, len(runs))


def panels(
    groups: Groups, rows: Mapping[str, str], scores: Mapping[str, str]
) -> tuple[list[Panel], list[str]]:
    """Return the panels to draw, and notes on what is missing; both mappings give labels."""
    found, notes = [], []
    for name, heading in scores.items():
        curves = {label: curve(groups, group, name) for group, label in rows.items()}
        curves = {label: points for label, points in curves.items() if len(points.epochs) > 1}
        if curves:
            found.append(Panel(heading, "%" if is_fraction(name) else "", curves))
        else:
            notes.append(f"no curve of {name}: it was evaluated at only one epoch")
    uneven = [
        label
        for group, label in rows.items()
        if len({result.run.rows[-1]["epoch"] for result in groups[group].values()}) > 1
    ]
    if uneven:
        notes.append(f"the curve ends with the shortest run of the group: {', '.join(uneven)}")
    return found, notes


def check_path(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--curves must end in {', '.join(FORMATS)}; got {path}")


def draw(panels: Sequence[Panel], path: Path, caption: str = "") -> None:
    """Draw a panel per score: the mean of each group over the epochs, in a 95 % band.

    A wide band would flatten all curves, so the axis reaches no further beyond the means than they
    span themselves.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    seeds = {group: curve.n_seeds for panel in panels for group, curve in panel.curves.items()}
    if not seeds:
        raise ValueError(f"--curves {path}: no score was evaluated at two epochs")
    if len(seeds) > MAX_GROUPS:
        raise ValueError(
            f"--curves {path} would draw {len(seeds)} groups, but only {MAX_GROUPS} can be told "
            "apart; choose some with --groups"
        )
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    width = max(PANEL[0] * columns, 5.0)
    entries = {group: f"{drawable(group)}  ({n} seed{'s' * (n > 1)})" for group, n in seeds.items()}
    beside = max(1, min(len(entries), int(width / (0.07 * max(map(len, entries.values())) + 0.7))))
    below = LINE * (math.ceil(len(entries) / beside) + bool(caption)) + 0.15
    height = PANEL[1] * lines + below
    room = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height))
    figure = new_figure(width, height, layout=room)

    handles: dict[str, Any] = {}
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for panel, axis in zip(panels, axes, strict=False):
        for group, curve in panel.curves.items():
            repeat, colour = divmod(list(seeds).index(group), len(COLOURS))
            (handles[group],) = axis.plot(
                curve.epochs,
                curve.means,
                color=COLOURS[colour],
                linestyle=DASHES[repeat],
                marker=MARKERS[repeat],
                markersize=3,
                linewidth=1.4,
            )
            low, high = (
                [mean + sign * half for mean, half in zip(curve.means, curve.halves, strict=True)]
                for sign in (-1, 1)
            )
            axis.fill_between(
                curve.epochs, low, high, color=COLOURS[colour], alpha=0.15, linewidth=0
            )
        means = [mean for curve in panel.curves.values() for mean in curve.means]
        reach = REACH * max(max(means) - min(means), 1e-9)
        bottom, top = axis.get_ylim()
        axis.set_ylim(max(bottom, min(means) - reach), min(top, max(means) + reach))
        axis.set_ylabel(panel.unit, fontsize=8)
        label_panel(axis, drawable(panel.heading))
    for axis in figure.axes[len(panels) :]:
        axis.set_visible(False)
    figure.legend(
        [handles[group] for group in entries],
        list(entries.values()),
        loc="upper center",
        bbox_to_anchor=(0.5, (below - 0.02) / height),
        ncols=beside,
        fontsize=8,
        frameon=False,
        handlelength=2.8,
    )
    figure.text(0.5, 0.05 / height, caption, ha="center", va="bottom", fontsize=7, color="0.35")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower())
