"""Learning curves as a picture, and the panels and fonts that other pictures share."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from utilities.files import atomic_path

COLUMNS = 3
PANEL = (3.6, 2.5)  # inches, margins included
MARGINS = (0.5, 0.15, 0.45, 0.32)  # inches: left, right, bottom, top


def learning_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each score over the epochs in a panel of its own, as PNG; epoch 0 is a dashed line.

    ``rows`` are as in metrics.jsonl: ``{"epoch": int, score: float or None}``.
    """
    curves = {
        name: [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        for name in dict.fromkeys(name for row in rows for name in row if name != "epoch")
    }
    ends = {name: points[-1][0] for name, points in curves.items() if points}
    # A score of epoch 0 alone, such as that of the backbone's features, has no curve.
    later = any(ends.values())
    curves = {name: curves[name] for name, end in ends.items() if end or not later}
    if not curves:
        raise ValueError(f"no score to draw in {path}; record an epoch first")

    first, last = min(row["epoch"] for row in rows), max(row["epoch"] for row in rows)
    margin = max(0.03 * (last - first), 0.05)

    columns = min(COLUMNS, len(curves))
    lines = math.ceil(len(curves) / columns)
    width, height = PANEL[0] * columns, PANEL[1] * lines
    figure = new_figure(width, height)
    # Fixed margins: a layout engine would take as long again as drawing.
    figure.subplots_adjust(
        left=MARGINS[0] / width,
        right=1 - MARGINS[1] / width,
        bottom=MARGINS[2] / height,
        top=1 - MARGINS[3] / height,
        wspace=(MARGINS[0] + MARGINS[1]) / (PANEL[0] - MARGINS[0] - MARGINS[1]),
        hspace=(MARGINS[2] + MARGINS[3]) / (PANEL[1] - MARGINS[2] - MARGINS[3]),
    )
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, (name, points) in zip(panels, curves.items(), strict=False):
        epochs, values = zip(*points, strict=True)
        if epochs[0] == 0 and len(points) > 1:
            panel.axhline(values[0], color="0.55", linestyle="--", linewidth=1)
            panel.annotate(
                "untrained",
                (1, values[0]),
                xycoords=("axes fraction", "data"),
                xytext=(-3, 2),
                textcoords="offset points",
                ha="right",
                fontsize=7,
                color="0.45",
            )
        panel.plot(epochs, values, marker="o", markersize=2.5, linewidth=1.4, color="C0")
        label_panel(panel, f"{drawable(name)}  (last {values[-1]:.4g})")
        panel.set_xlim(first - margin, last + margin)
    for panel in figure.axes[len(curves) :]:
        panel.set_visible(False)
    with atomic_path(path, parents=False) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def new_figure(width: float, height: float, **options: Any) -> Any:
    """Return an empty matplotlib figure (sizes in inches), without a display or pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def drawable(text: str) -> str:
    """Return a text that matplotlib can draw without a warning.

    A character that its font lacks is drawn in any font that has it: call this before the text is
    handed to matplotlib. One that no font has is written as in Python, 花 as \\u82b1; signs that
    only change how others look are left out.
    """
    import matplotlib

    shown, usual = [], _characters(_file_of("sans-serif"))
    for character in str(text):
        if character.isspace() or ord(character) in usual:
            shown.append(character)
        elif family := _families().get(ord(character)):
            fallbacks = matplotlib.rcParams["font.family"]
            if family not in fallbacks:
                matplotlib.rcParams["font.family"] = [*fallbacks, family]
            shown.append(character)
        elif unicodedata.category(character) != "Cf":
            shown.append(character.encode("ascii", "backslashreplace").decode())
    return "".join(shown)


def font_file(text: str) -> str:
    """Return the file of the font that ``drawable`` found for the first unusual character."""
    unusual = (ord(c) for c in text if ord(c) not in _characters(_file_of("sans-serif")))
    family = next((_families()[code] for code in unusual if code in _families()), "sans-serif")
    return _file_of(family)


def _file_of(family: str) -> str:
    from matplotlib import font_manager

    return str(font_manager.findfont(font_manager.FontProperties(family=[family])))


@lru_cache(maxsize=1)  # nearly always of the same font
def _characters(font: str) -> frozenset[int]:
    """Return the code points that a font file has a glyph for; none if it cannot be scaled."""
    from matplotlib import font_manager

    try:
        opened = font_manager.get_font(font)
        return frozenset(opened.get_charmap()) if opened.scalable else frozenset()
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or of another format
        return frozenset()


@cache
def _families() -> dict[int, str]:
    """Return the first font at hand that has a glyph, for each code point."""
    from matplotlib import font_manager

    found: dict[int, str] = {}
    for entry in font_manager.fontManager.ttflist:
        if entry.style == "normal" and not entry.name.startswith("Last Resort"):
            for code in _characters(entry.fname):
                found.setdefault(code, entry.name)
    return found


def label_panel(panel: Any, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_title(title, fontsize=9, parse_math=False)
    panel.set_xlabel("epoch", fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
