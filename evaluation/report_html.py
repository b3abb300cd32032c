"""``report.html``: one run on one page that opens from disk, needs no network and holds all images.

The page is a Jinja template that escapes whatever it is given: class names and paths are often
folder names, which anyone can choose. Its policy admits no script but the one it was built with.

Its size is bounded whatever N is, see ``MAX_BYTES``: every image is encoded to fit a number of
bytes, and each section has a largest number of entries.
"""

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from evaluation.exhibit import (
    N_NEIGHBOURS,
    ClassScores,
    Exhibit,
    ImageMap,
    Pulled,
    Retrieved,
    Similarities,
    image_map,
    per_class,
    pulled_pairs,
    retrievals,
    similarities,
)
from evaluation.pictures import (
    GROUP_COLOURS,
    group_numbers,
    largest_groups,
    map_picture,
    matrix_titles,
    retrieval_picture,
    shading,
    shorten,
    similarity_picture,
    thumbnails,
)
from evaluation.tables import is_fraction, number
from metrics import Interval
from utilities.files import atomic_path

MAX_BYTES = 10_000_000  # of report.html, whatever its names are; the numbers below keep it
GRID_IMAGE = (112, 8192)  # px and bytes
PAIR_IMAGE = (56, 3072)
MAP_IMAGE = (48, 1536)
TABLE_CLASSES = 1000  # the half with lowest and the half with highest scores
CURVES = 40
CURVE_POINTS = 200
NAME_LENGTH = 60  # of class names, in characters
FLAG_LENGTH = 200

PAGE = Path(__file__).with_name("page")
INK = (64, 120, 184)  # of the matrices; how opaque it is tells the value, on light and dark alike


def write_report(
    folder: Path,
    exhibit: Exhibit,
    *,
    rows: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, str],
    intervals: Mapping[str, Interval] | None = None,
    config: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the pictures and ``report.html`` of a run into its folder.

    Args:
        exhibit: the images that are shown, with their embeddings and scores.
        rows: ``{"epoch": int, score: float or None}`` as in metrics.jsonl, oldest first. What the
            first row measures are the headline scores, for it is an evaluation and nothing else.
        protocols: how each score was measured, by name, as ``Scores`` carries them; may be empty.
        intervals: 95 % intervals of the last scores, by name, likewise.
        config: flags by name, or the contents of config.json.

    Returns:
        the files by name: "retrieval", "similarities" and "map" are PNGs, "report" is the page. A
        picture that there is nothing for (no class has two images, there is only one class) is
        left out.

    Raises:
        OSError: the folder cannot be written.
    """
    queries = retrievals(exhibit)
    matrices = similarities(exhibit)
    points = image_map(exhibit)

    written = {}
    if any(queries.values()):
        written["retrieval"] = folder / "retrieval.png"
        retrieval_picture(exhibit, queries, written["retrieval"])
    if len(matrices.classes) > 1:
        written["similarities"] = folder / "similarities.png"
        similarity_picture(exhibit, matrices, written["similarities"])
    written["map"] = folder / "map.png"
    map_picture(exhibit, points, written["map"])

    page = _page(
        folder.resolve().name, exhibit, queries, matrices, pulled_pairs(exhibit), points,
        rows, protocols, intervals or {}, config,
    )  # fmt: skip
    written["report"] = folder / "report.html"
    with atomic_path(written["report"]) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return written


def _page(
    title: str,
    exhibit: Exhibit,
    queries: Mapping[str, Sequence[Retrieved]],
    matrices: Similarities,
    pulled: Pulled | None,
    points: ImageMap,
    rows: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, str],
    intervals: Mapping[str, Interval],
    config: Mapping[str, Any],
) -> str:
    """The page as text, section by section in the order of reading."""
    style, script = (
        (PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js")
    )
    names = [name for name in (rows[0] if rows else {}) if name != "epoch"]
    scores = _scores(names, rows, intervals)
    table = per_class(exhibit)
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": lambda text: shorten(text, NAME_LENGTH),
        "breakable": lambda text: Markup("/<wbr>").join(str(text).split("/")),
        "percent": lambda value: _number(100 * value, ".1f"),
        "cosine": lambda value: _number(value, ".2f"),
        "signed": lambda value: _number(value, "+.1f"),
    }
    return environment.get_template("page.html").render(
        title=title,
        exhibit=exhibit,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        scores=scores,
        compared=any(score.untrained != "–" for score in scores),
        percent_only=all(map(is_fraction, names)),
        protocols=_measured(names, protocols),
        curves=_curves(names, rows),
        k=N_NEIGHBOURS,
        queries=_queries(exhibit, queries),
        matrices=_matrices(matrices),
        similarities=matrices,
        pulled=pulled,
        pair_images=_pair_images(exhibit, pulled),
        image_map=points,
        map=_map(exhibit, points),
        classes=_ends(table),
        n_classes=len(table),
        flags=_flags(config),
        data={"matrices": _matrix_data(exhibit, matrices), "map": _map_data(exhibit, points)},
    )


# --------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------
class Score(NamedTuple):
    """A line of the headline table, as text."""

    name: str
    untrained: str
    trained: str
    interval: str  # empty if there is none
    change: str


def _scores(
    names: Iterable[str], rows: Sequence[Mapping[str, Any]], intervals: Mapping[str, Interval]
) -> list[Score]:
    """The scores of the last epoch that has them beside those of epoch 0."""
    scores = []
    for name in names:
        values = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        trained = values[-1][1] if values else math.nan
        untrained = values[0][1] if len(values) > 1 and values[0][0] == 0 else math.nan
        bounds = [number(name, bound) for bound in intervals.get(name, ())]
        scores.append(
            Score(
                name,
                number(name, untrained),
                number(name, trained),
                "" if "–" in bounds else " – ".join(bounds),
                number(name, trained - untrained, "+"),
            )
        )
    return scores


def _measured(names: Iterable[str], protocols: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the scores that were measured by each protocol, that of most of them first."""
    measured: dict[str, list[str]] = {}
    for name in names:
        if name in protocols:
            measured.setdefault(protocols[name], []).append(name)
    return dict(sorted(measured.items(), key=lambda item: -len(item[1])))


class Curve(NamedTuple):
    """A score over the epochs as an SVG polyline in a 240 x 96 box, y downward."""

    name: str
    points: list[tuple[float, float]]
    untrained: float | None  # y of epoch 0
    first: str
    last: str
    low: str
    high: str
    epochs: tuple[int, int]


def _curves(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Curves of what has two values or more, headline scores first, their fractions in percent."""
    curves = []
    for name in dict.fromkeys([*names, *(key for row in rows for key in row if key != "epoch")]):
        scale, form = (100, ".2f") if name in names and is_fraction(name) else (1, ".4g")
        found = [
            (row["epoch"], scale * row[name])
            for row in rows
            if row.get(name) is not None and math.isfinite(row[name])
        ]
        if len(found) < 2:
            continue
        if len(found) > CURVE_POINTS:  # the last is always among them
            places = np.linspace(0, len(found) - 1, CURVE_POINTS).round().astype(int)
            found = [found[place] for place in places]
        epochs, values = (np.array(column, dtype=float) for column in zip(*found, strict=True))
        low, high = values.min(), values.max()
        x = 240 * (epochs - epochs[0]) / max(epochs[-1] - epochs[0], 1)
        y = 96 - 96 * (values - low) / max(high - low, 1e-12)
        curves.append(
            Curve(
                name,
                points=[
                    (round(float(a), 1), round(float(b), 1)) for a, b in zip(x, y, strict=True)
                ],
                untrained=round(float(y[0]), 1) if epochs[0] == 0 else None,
                first=format(values[0], form),
                last=format(values[-1], form),
                low=format(low, form),
                high=format(high, form),
                epochs=(int(epochs[0]), int(epochs[-1])),
            )
        )
    return curves[:CURVES]


# --------------------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------------------
class Tile(NamedTuple):
    """An image of the retrieval grids."""

    source: str  # data URI, empty if the image cannot be read
    name: str  # of its class
    right: bool
    alt: str
    file: str


def _queries(
    exhibit: Exhibit, queries: Mapping[str, Sequence[Retrieved]]
) -> dict[str, list[tuple[Retrieved, list[Tile]]]]:
    """Each query with its tiles, its own first."""
    wanted = {
        row: None for found in queries.values() for query in found
        for row in (query.row, *query.neighbours)
    }  # fmt: skip
    sources = dict(
        zip(wanted, _sources((exhibit.paths[r] for r in wanted), *GRID_IMAGE), strict=True)
    )

    def tile(query: Retrieved, place: int, row: int) -> Tile:
        right = bool(exhibit.labels[row] == exhibit.labels[query.row])
        name = shorten(exhibit.class_of(row), NAME_LENGTH)
        role = f"neighbour {place}, {'right' if right else 'wrong'}" if place else "query"
        path = exhibit.paths[row]
        file = shorten(f"{path.parent.name}/{path.name}", 2 * NAME_LENGTH)
        return Tile(sources[row], name, right, f"{role}: {name}", file)

    return {
        name: [
            (query, [tile(query, *at) for at in enumerate((query.row, *query.neighbours))])
            for query in found
        ]
        for name, found in queries.items()
    }


def _pair_images(exhibit: Exhibit, pulled: Pulled | None) -> dict[int, str]:
    """Data URI of the first image of each class of the pairs."""
    pairs = [*pulled.together, *pulled.apart] if pulled else []
    labels = list(dict.fromkeys(label for pair in pairs for label in pair.classes))
    first = {label: int((exhibit.labels == label).nonzero()[0]) for label in labels}
    sources = _sources((exhibit.paths[row] for row in first.values()), *PAIR_IMAGE)
    return dict(zip(labels, sources, strict=True))


def _sources(paths: Iterable[Path], side: int, most: int) -> list[str]:
    """Data URIs of thumbnails; empty where an image cannot be read."""
    return [
        f"data:image/webp;base64,{webp(image, most)}" if image else ""
        for image in thumbnails(paths, side)
    ]


def webp(image: Image.Image, most: int) -> str:
    """The image as WebP in base64, in ``most`` bytes before base64: worse, then smaller, to fit."""
    while True:
        for quality in (75, 50, 25):
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=4)
            if buffer.tell() <= most:
                return base64.b64encode(buffer.getvalue()).decode()
        image = image.resize([max(1, side // 2) for side in image.size])


# --------------------------------------------------------------------------------------------------
# Matrices and map
# --------------------------------------------------------------------------------------------------
class Matrix(NamedTuple):
    """A similarity matrix as a picture."""

    name: str
    title: str
    source: str  # data URI of a PNG
    low: float  # cosine that is clear
    high: float  # cosine that is opaque


def _matrices(found: Similarities) -> list[Matrix]:
    matrices = []
    titles = matrix_titles(found)
    for name, matrix in found.matrices.items():
        values = matrix.numpy()
        low, high = shading(values)
        pixels = np.empty((*values.shape, 4), dtype=np.uint8)
        pixels[..., :3] = INK
        pixels[..., 3] = 255 * ((values - low) / (high - low)).clip(0, 1)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        matrices.append(Matrix(name, titles[name], source, low, high))
    return matrices


def _matrix_data(exhibit: Exhibit, found: Similarities) -> dict[str, Any]:
    """Class names and, for each matrix, M x M bytes in base64: 100 (1 + cosine), rounded."""
    hundredths = {
        name: (100 * (1 + matrix.clamp(-1, 1))).round().byte().numpy().tobytes()
        for name, matrix in found.matrices.items()
    }
    return {
        "names": [shorten(exhibit.class_names[c], NAME_LENGTH) for c in found.classes.tolist()],
        "values": {name: base64.b64encode(part).decode() for name, part in hundredths.items()},
    }


def _map(exhibit: Exhibit, found: ImageMap) -> dict[str, Any]:
    """Circles in a box 1000 wide, and the names of the groups that have a colour."""
    groups = largest_groups(exhibit, found)
    circles = [
        (round(20 + 960 * x), round(20 + 960 * y), group)
        for (x, y), group in zip(
            found.points.tolist(), group_numbers(exhibit, found).tolist(), strict=True
        )
    ]
    return {
        "circles": circles,
        "height": round(40 + 960 * float(found.points[:, 1].max())),
        "groups": list(zip(groups, GROUP_COLOURS, strict=False)),
        "others": len({*exhibit.class_groups}) > len(groups),
    }


def _map_data(exhibit: Exhibit, found: ImageMap) -> dict[str, Any]:
    """For each circle its class and thumbnail; for each class its name and group."""
    labels = exhibit.labels[found.rows]
    classes = labels.unique().tolist()
    places = {label: place for place, label in enumerate(classes)}
    images = thumbnails((exhibit.paths[row] for row in found.rows.tolist()), MAP_IMAGE[0])
    return {
        "names": [shorten(exhibit.class_names[c], NAME_LENGTH) for c in classes],
        "groups": [shorten(exhibit.class_groups[c], NAME_LENGTH) for c in classes]
        if exhibit.class_groups
        else [],
        "classes": [places[label] for label in labels.tolist()],
        "images": [webp(image, MAP_IMAGE[1]) if image else "" for image in images],
    }


# --------------------------------------------------------------------------------------------------
# Table and flags
# --------------------------------------------------------------------------------------------------
def _ends(table: Sequence[ClassScores]) -> list[ClassScores]:
    """All classes, or where there are too many those with lowest and those with highest scores."""
    if len(table) <= TABLE_CLASSES:
        return list(table)
    return [*table[: TABLE_CLASSES // 2], *table[-(TABLE_CLASSES // 2) :]]


def _flags(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flags as they would be typed, then what else config.json holds, dots between its levels."""
    if isinstance(config.get("flags"), Mapping):
        rest = {name: value for name, value in config.items() if name != "flags"}
        return [*_flags(config["flags"]), *_flags(rest)]
    lines: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            lines += [(f"{name}.{key}", text) for key, text in _flags(value)]
        else:
            plain = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            lines.append((str(name), shorten(plain, FLAG_LENGTH)))
    return lines


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
