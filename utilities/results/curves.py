"""Learning curves of groups of runs, with bands over their seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utilities.files import atomic_path
from utilities.results.runs import Groups, is_fraction
from utilities.results.significance import interval

PICTURES = (".png", ".svg", ".pdf")
COLUMNS = 3
PANEL = (3.6, 2.75)  # inches
LINE = 0.22  # inches, of the legend or the caption
# Seven of the eight colours of Okabe and Ito, *Color Universal Design*, 2008, that readers of any
# colour vision tell apart; not the yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# A colour that comes again has other dashes and another marker.
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
MOST_GROUPS = len(COLOURS) * len(DASHES)
REACH = 1.0  # bands are cut beyond so many times the span of the means


class Curve(NamedTuple):
    """A group in one score over the epochs that all its runs were evaluated at.

    Means and half-widths of 95 % intervals are in percent where the score is a fraction.
    """

    epochs: list[int]
    means: list[float]
    halves: list[float]
    n_seeds: int


class Panel(NamedTuple):
    """A score: its heading, its unit (``%`` or nothing), and the curve of each group."""

    heading: str
    unit: str
    curves: dict[str, Curve]


def curve(groups: Groups, group: str, name: str) -> Curve:
    """A group's curve of a score; without epochs where none is shared by all its runs."""
    scale = 100 if is_fraction(name) else 1
    runs = [
        {row["epoch"]: scale * row[name] for row in result.run.rows if row.get(name) is not None}
        for result in groups[group].values()
    ]
    epochs = sorted(set.intersection(*map(set, runs)))
    spread = [interval([run[epoch] for run in runs]) for epoch in epochs]
    return Curve(epochs, [mean for mean, _ in spread], [half for _, half in spread], len(runs))


def panels(
    groups: Groups, rows: Mapping[str, str], scores: Mapping[str, str]
) -> tuple[list[Panel], list[str]]:
    """What is to be drawn, and notes on what is not.

    Args:
        rows: group to its name in the legend.
        scores: name to heading.
    """
    found, notes = [], []
    for name, heading in scores.items():
        curves = {label: curve(groups, group, name) for group, label in rows.items()}
        curves = {label: found for label, found in curves.items() if len(found.epochs) > 1}
        if curves:
            found.append(Panel(heading, "%" if is_fraction(name) else "", curves))
        else:
            notes.append(f"no curve of {name}: it was evaluated at one epoch alone")
    uneven = [
        label
        for group, label in rows.items()
        if len({result.run.rows[-1]["epoch"] for result in groups[group].values()}) > 1
    ]
    if uneven:
        notes.append(f"the curve ends with the shortest run of the group: {', '.join(uneven)}")
    return found, notes


def check_picture(path: Path) -> None:
    """See that a picture of that suffix can be drawn.

    Raises:
        ValueError: it cannot; names the suffixes that can.
    """
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"--curves {path} is no picture; end it in {', '.join(PICTURES)}")


def draw(panels: Sequence[Panel], path: Path, caption: str = "") -> None:
    """One panel per score: the mean of each group over the epochs, in a 95 % band.

    A group of one seed has no band. One wide band would flatten all curves, so a panel reaches
    no further above and below the means than they span themselves, and cuts bands there.

    Args:
        path: a .png, .svg or .pdf.
        caption: a line below the legend.

    Raises:
        ValueError: nothing to draw, or too many groups to tell apart.
    """
    # Built on the Figure itself, without pyplot: no display is asked for and no global state kept.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    seeds = {group: curve.n_seeds for panel in panels for group, curve in panel.curves.items()}
    if not seeds:
        raise ValueError(f"--curves {path}: no score was evaluated at two epochs")
    if len(seeds) > MOST_GROUPS:
        raise ValueError(
            f"--curves {path} would have {len(seeds)} groups, of which {MOST_GROUPS} can be told "
            "apart; choose some with --groups"
        )
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    width = max(PANEL[0] * columns, 5.0)
    entries = {group: f"{group}  ({n} seed{'s' * (n > 1)})" for group, n in seeds.items()}
    beside = max(1, min(len(entries), int(width / (0.07 * max(map(len, entries.values())) + 0.7))))
    below = LINE * (math.ceil(len(entries) / beside) + bool(caption)) + 0.15
    height = PANEL[1] * lines + below
    room = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height))
    figure = Figure(figsize=(width, height), layout=room)
    FigureCanvasAgg(figure)

    handles: dict[str, Any] = {}
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for panel, axis in zip(panels, axes, strict=False):
        for group, curve in panel.curves.items():
            again, colour = divmod(list(seeds).index(group), len(COLOURS))
            (handles[group],) = axis.plot(
                curve.epochs,
                curve.means,
                color=COLOURS[colour],
                linestyle=DASHES[again],
                marker=MARKERS[again],
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
        axis.set_title(panel.heading, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_ylabel(panel.unit, fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
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
