"""The pictures of a run as PNG files: of training views, retrieved images, similarities and map."""

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.reading import read_image
from evaluation.report_classes import Similarities
from evaluation.report_data import ReportData
from evaluation.report_retrieval import ImageMap, Retrieved
from utilities.files import atomic_path
from utilities.plots import drawable, new_figure

GROUP_COLOURS = (
    "#4a7ebb", "#dd8a33", "#41a077", "#cc5856", "#8c70c4", "#a3795c", "#d07cab", "#38a3b8",
)  # fmt: skip
OTHER_COLOUR = "#8b8f96"
RIGHT, WRONG = "#2e8b57", "#c0392b"
VIEWS = "views.png"  # in the run folder
TILE = 96  # px of an image in the retrieval picture
LABELLED = 50  # classes whose names fit beside a matrix


def retrieval_picture(
    data: ReportData, queries: Mapping[str, Sequence[Retrieved]], path: Path
) -> None:
    """Draw queries in rows with their neighbours beside them; ValueError if there is none.

    A right neighbour has a solid frame and a tick; a wrong one a dashed frame, a cross, its class.
    """
    from matplotlib.patches import Rectangle

    lines = [(name, query) for name, found in queries.items() for query in found]
    if not lines:
        raise ValueError(f"{data.name} has no query to draw in {path}")
    wanted = [row for _, query in lines for row in (query.row, *query.neighbours)]
    images = dict(zip(wanted, thumbnails((data.paths[r] for r in wanted), TILE), strict=True))
    columns = 1 + max(len(query.neighbours) for _, query in lines)
    width, height = max(1.2 * columns + 0.25, 3.5), 1.42 * len(lines)
    panel = _canvas(width, height)
    for line, (name, query) in enumerate(lines):
        for column, row in enumerate((query.row, *query.neighbours)):
            x, y = 1.2 * column + 0.25 * (column > 0), 1.42 * line + 0.28
            image = images[row]
            if image is not None:
                panel.imshow(squared(image), extent=(x, x + 1.1, y + 1.1, y))
            else:
                panel.text(x + 0.55, y + 0.55, "unreadable", fontsize=6, ha="center", va="center")
            right = bool(data.labels[row] == data.labels[query.row])
            if column:
                title = "✓" if right else f"✗ {named(data.class_of(row), 17)}"
                colour, text_colour = (RIGHT if right else WRONG,) * 2
            else:
                score = f"{name}, mAP@R {100 * query.average_precision:.0f}"
                title = f"{named(data.class_of(row), 24)}\n{score}"
                colour, text_colour = "0.45", "0.25"
            frame = Rectangle(
                (x, y), 1.1, 1.1, fill=False, edgecolor=colour,
                linewidth=1.8 if column else 1, linestyle="-" if right else (0, (3, 1.5)),
            )  # fmt: skip
            panel.add_patch(frame)
            size = 6 if column else 5.5
            panel.text(x, y - 0.04, title, fontsize=size, color=text_colour, parse_math=False)
    panel.set(xlim=(-0.05, width - 0.05), ylim=(height, 0), aspect="auto")
    _save(panel.figure, path)


def similarity_picture(data: ReportData, found: Similarities, path: Path) -> None:
    """Draw the matrices side by side, each shaded over its own range."""
    n = len(found.matrices)
    titles = matrix_titles(found)
    figure = new_figure(4.2 * n + 0.8, 4.6, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, n))
    for panel, (name, matrix) in zip(panels, found.matrices.items(), strict=True):
        low, high = shading(matrix.numpy())
        off = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix.numpy())
        shown = panel.imshow(off, cmap="Blues", vmin=low, vmax=high)
        panel.set_title(titles[name], fontsize=9)
        panel.set(xticks=[], yticks=[])
        bar = figure.colorbar(shown, ax=panel, shrink=0.7)
        bar.set_label("cosine", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    if len(found.classes) <= LABELLED:
        names = [named(data.class_names[c], 22) for c in found.classes.tolist()]
        panels[0].set_yticks(range(len(names)), names, fontsize=4.5, parse_math=False)
    _save(figure, path)


def map_picture(data: ReportData, found: ImageMap, path: Path) -> None:
    """Draw the map as points, the largest groups in colours of their own."""
    figure = new_figure(7, 6, layout="constrained")
    panel = figure.subplots()
    points = found.points.numpy()
    groups = group_numbers(data, found)
    for number, name in [(-1, "other"), *enumerate(largest_groups(data, found))]:
        of_it = groups == number
        colour = GROUP_COLOURS[number] if number >= 0 else OTHER_COLOUR
        panel.scatter(*points[of_it].T, s=9, color=colour, label=named(name, 30), linewidths=0)
    panel.set(xticks=[], yticks=[], aspect="equal")
    panel.invert_yaxis()  # as on a page, where y runs downward
    title = f"{named(data.name, 60)}, {found.method} of {len(points):,} images"
    panel.set_title(title, fontsize=9, parse_math=False)
    if data.class_groups:
        legend = figure.legend(fontsize=6.5, frameon=False, loc="outside right center")
        for text in legend.get_texts():
            text.set_parse_math(False)
    _save(figure, path)


def views_picture(views: np.ndarray, captions: Sequence[Sequence[str]], path: Path) -> None:
    """Draw the views (T, V, S, S, 3) uint8 of tuples of a batch, which an objective calls similar.

    Each tuple has a caption for each view; one that all share is drawn once.
    """
    n, n_views = views.shape[:2]
    columns = max(1, 6 // n_views)
    lines = -(-n // columns)
    width, height = n_views + 0.2, 1.45
    panel = _canvas(width * columns, height * lines)
    for number, (images, texts) in enumerate(zip(views, captions, strict=True)):
        left, top = width * (number % columns) + 0.1, height * (number // columns) + 0.06
        for place, image in enumerate(images):
            x = left + place
            panel.imshow(image, extent=(x, x + 0.97, top + 0.97, top), interpolation="lanczos")
        once = len(set(texts)) == 1
        for place, caption in enumerate(texts[:1] if once else texts):
            across = 23 * (n_views if once else 1)  # characters
            text = "\n".join(textwrap.wrap(named(caption, 3 * across - 6), across)[:3])
            panel.text(left + place, top + 1.01, text, fontsize=5, va="top", parse_math=False)
    panel.set(xlim=(0, width * columns), ylim=(height * lines, 0), aspect="auto")
    _save(panel.figure, path)


def thumbnails(paths: Iterable[Path], side: int) -> list[Image.Image | None]:
    """Return images in RGB, at most ``side`` px high and wide; None for an unreadable one."""

    def load(path: Path) -> Image.Image | None:
        try:
            image = read_image(path)
        except OSError:
            return None
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(load, paths))


def matrix_titles(found: Similarities) -> dict[str, str]:
    """Return the titles of the matrices; "trained" is needed only beside "untrained"."""
    after = "images, trained" if "before" in found.matrices else "images"
    titles = {"words": "words", "before": "images, untrained", "after": after}
    return {name: titles[name] for name in found.matrices}


def shading(matrix: np.ndarray) -> tuple[float, float]:
    """Return the 1st and 99th percentile off the diagonal, which is always 1."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    if not len(off):
        return 0.0, 1.0
    low, high = np.percentile(off, [1, 99])
    return float(low), float(max(high, low + 1e-3))


def largest_groups(data: ReportData, found: ImageMap) -> list[str]:
    """Return the groups with most images on the map, as many as there are colours."""
    if not data.class_groups:
        return []
    groups = [data.class_groups[label] for label in data.labels[found.rows].tolist()]
    names, counts = np.unique(groups, return_counts=True)
    return [str(names[place]) for place in np.argsort(-counts, kind="stable")[: len(GROUP_COLOURS)]]


def group_numbers(data: ReportData, found: ImageMap) -> np.ndarray:
    """Return the (M,) place of each image's group in ``largest_groups``; -1 for other groups."""
    places = {name: place for place, name in enumerate(largest_groups(data, found))}
    groups = data.class_groups or [""] * len(data.class_names)
    return np.array([places.get(groups[c], -1) for c in data.labels[found.rows].tolist()])


def shorten(text: str, most: int) -> str:
    """Return the text in one line of at most ``most`` characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def named(text: str, most: int) -> str:
    """Return the text as ``shorten`` does, in characters that a picture can show."""
    return shorten(drawable(text), most)


def squared(image: Image.Image) -> np.ndarray:
    """Return (S, S, 3) uint8: the image centred on a light square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "#f2f2f2")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square)


def _canvas(width: float, height: float) -> Any:
    """Return axes that fill a figure of this size in inches."""
    panel = new_figure(width, height).add_axes((0, 0, 1, 1))
    panel.axis("off")
    return panel


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
