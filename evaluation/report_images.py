"""Images, matrices and map of a report's page, of bounded size."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from evaluation.pictures import (
    GROUP_COLOURS,
    group_numbers,
    largest_groups,
    matrix_titles,
    shading,
    shorten,
    thumbnails,
)
from evaluation.render import NAME_LENGTH
from evaluation.report_classes import Pulled, Similarities
from evaluation.report_data import ReportData
from evaluation.report_retrieval import ImageMap, Retrieved
from evaluation.report_words import NameSearch

GRID_IMAGE = (112, 8192)  # px and bytes
FOUND_IMAGE = (112, 4096)  # of what names find
BEFORE_IMAGE = (56, 2560)  # of what queries find before training
PAIR_IMAGE = (56, 3072)
MAP_IMAGE = (48, 1536)
VIEWS_IMAGE = (1040, 120_000)
MAP_THUMBNAILS = 80  # drawn on the map
MAP_SIDE = 46  # of one of them, on a map 1000 wide
ROW_LABELS = 16  # of a matrix, at most
ROW_BOX = (110, 260)  # of its labels, as high as the matrix
INK = (64, 120, 184)  # of the matrices; its opacity is the value, on light and dark pages alike


class QueryTiles(NamedTuple):
    query: Retrieved
    asked: dict[str, Any]
    found: list[dict[str, Any]]
    untrained: list[dict[str, Any]]  # what was found before training


def query_tiles(
    data: ReportData, queries: Mapping[str, Sequence[Retrieved]]
) -> dict[str, list[QueryTiles]]:
    """Return each query with its tiles; ``source`` is empty if unreadable.

    A tile is ``beyond`` if it follows the R-th, of R images that are to be found.
    """
    shown = [query for found in queries.values() for query in found]
    wanted = [row for query in shown for row in (query.row, *query.neighbours)]
    sources = _sources_of(data, wanted, *GRID_IMAGE)
    before = [row for query in shown if query.untrained for row in query.untrained.neighbours]
    small = _sources_of(data, before, *BEFORE_IMAGE)

    def tiles(query: Retrieved | None, of: Mapping[int, str]) -> list[dict[str, Any]]:
        found = []
        for place, row in enumerate(query.neighbours if query else (), 1):
            assert query is not None
            right = bool(data.labels[row] == data.labels[query.row])
            role = f"neighbour {place}, {'right' if right else 'wrong'}"
            tile = _tile(data, row, right, role, of[row])
            found.append({**tile, "beyond": place > query.n_right})
        return found

    return {
        name: [
            QueryTiles(
                query,
                _tile(data, query.row, True, "query", sources[query.row]),
                tiles(query, sources),
                tiles(query.untrained, small),
            )
            for query in found
        ]
        for name, found in queries.items()
    }


def name_tiles(
    data: ReportData, searches: Mapping[str, Sequence[NameSearch]]
) -> dict[str, list[tuple[NameSearch, list[dict[str, Any]]]]]:
    """Return each name with the tiles of what it finds, as ``query_tiles`` without its own."""
    shown = [search for found in searches.values() for search in found]
    sources = _sources_of(data, [row for search in shown for row in search.found], *FOUND_IMAGE)

    def tiles(search: NameSearch) -> list[dict[str, Any]]:
        found = enumerate(zip(search.found, search.right, strict=True), 1)
        return [
            _tile(data, row, right, f"{place}, {'right' if right else 'wrong'}", sources[row])
            for place, (row, right) in found
        ]

    return {name: [(search, tiles(search)) for search in found] for name, found in searches.items()}


def _tile(data: ReportData, row: int, right: bool, role: str, source: str) -> dict[str, Any]:
    name, path = shorten(data.class_of(row), NAME_LENGTH), data.paths[row]
    file = shorten(f"{path.parent.name}/{path.name}", 2 * NAME_LENGTH)
    about = {"name": name, "right": right, "alt": f"{role}: {name}", "file": file}
    return {"source": source, "beyond": False, "file_name": shorten(path.name, 32), **about}


def _sources_of(data: ReportData, rows: Iterable[int], side: int, most: int) -> dict[int, str]:
    wanted = list(dict.fromkeys(rows))
    sources = _sources((data.paths[row] for row in wanted), side, most)
    return dict(zip(wanted, sources, strict=True))


def pair_images(data: ReportData, pulled: Pulled | None) -> dict[int, str]:
    """Return the data URI of the first image of each class of the pairs."""
    pairs = [*pulled.together, *pulled.apart] if pulled else []
    labels = list(dict.fromkeys(label for pair in pairs for label in pair.classes))
    first = {label: int((data.labels == label).nonzero()[0]) for label in labels}
    sources = _sources((data.paths[row] for row in first.values()), *PAIR_IMAGE)
    return dict(zip(labels, sources, strict=True))


def _sources(paths: Iterable[Path], side: int, most: int) -> list[str]:
    """Return data URIs of thumbnails, empty for an image that cannot be read."""
    return [
        f"data:image/webp;base64,{webp(image, most)}" if image else ""
        for image in thumbnails(paths, side)
    ]


def webp(image: Image.Image, most: int) -> str:
    """Return WebP in base64, in at most ``most`` bytes before base64: lower quality, then size."""
    while True:
        for quality in (75, 50, 25):
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=4)
            if buffer.tell() <= most:
                return base64.b64encode(buffer.getvalue()).decode()
        image = image.resize([max(1, side // 2) for side in image.size])


def matrix_images(found: Similarities) -> list[dict[str, Any]]:
    """Return the matrices as PNGs, whose ink is transparent at ``low`` and opaque at ``high``.

    The diagonal, which is always 1, is left blank.
    """
    matrices, titles = [], matrix_titles(found)
    for name, matrix in found.matrices.items():
        values = matrix.numpy()
        low, high = shading(values)
        pixels = np.empty((*values.shape, 4), dtype=np.uint8)
        pixels[..., :3] = INK
        pixels[..., 3] = 255 * ((values - low) / (high - low)).clip(0, 1)
        np.fill_diagonal(pixels[..., 3], 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        shown = {"name": name, "title": titles[name], "source": source}
        matrices.append({**shown, "low": low, "high": high})
    return matrices


def row_labels(data: ReportData, found: Similarities) -> list[tuple[float, str]]:
    """Return the names of evenly spaced rows of the matrices, and their heights in ``ROW_BOX``."""
    n = len(found.classes)
    step = -(-n // ROW_LABELS)
    return [
        (round(ROW_BOX[1] * (row + 0.5) / n, 1), shorten(data.class_names[label], 18))
        for row, label in list(enumerate(found.classes.tolist()))[::step]
    ]


def matrix_values(data: ReportData, found: Similarities) -> dict[str, Any]:
    """Return class names and, for each matrix, M x M bytes in base64: 100 (1 + cosine), rounded."""
    names = [shorten(data.class_names[c], NAME_LENGTH) for c in found.classes.tolist()]
    values = {}
    for name, matrix in found.matrices.items():
        hundredths = (100 * (1 + matrix.clamp(-1, 1))).round().byte().numpy().tobytes()
        values[name] = base64.b64encode(hundredths).decode()
    return {"names": names, "values": values}


def map_circles(data: ReportData, found: ImageMap) -> dict[str, Any]:
    """Return circles in a box 1000 wide, and the names of the groups that have a colour."""
    groups = largest_groups(data, found)
    numbers = group_numbers(data, found).tolist()
    circles = [
        (round(30 + 940 * x), round(30 + 940 * y), number)
        for (x, y), number in zip(found.points.tolist(), numbers, strict=True)
    ]
    return {
        "circles": circles,
        "height": round(60 + 940 * float(found.points[:, 1].max())),
        "groups": list(zip(groups, GROUP_COLOURS, strict=False)),
        "others": len({*data.class_groups}) > len(groups),
    }


def map_thumbnails(
    circles: Sequence[tuple[int, int, int]], images: Sequence[str]
) -> list[tuple[int, int, int, str]]:
    """Return left, top, group and data URI of images to draw on the map without overlap."""
    drawn: list[tuple[int, int, int, str]] = []
    for (x, y, group), image in zip(circles, images, strict=True):
        left, top = x - MAP_SIDE // 2, y - MAP_SIDE // 2
        clear = all(max(abs(left - a), abs(top - b)) > MAP_SIDE + 4 for a, b, *_ in drawn)
        if image and clear and len(drawn) < MAP_THUMBNAILS:
            drawn.append((left, top, group, f"data:image/webp;base64,{image}"))
    return drawn


def views_source(path: Path) -> str:
    """Return the data URI of the picture of training views; "" if there is none."""
    return _sources([path], *VIEWS_IMAGE)[0] if path.is_file() else ""


def map_images(data: ReportData, found: ImageMap) -> dict[str, Any]:
    """Return class and thumbnail of each circle, and name and group of each class."""
    labels = data.labels[found.rows]
    classes = labels.unique().tolist()
    places = {label: place for place, label in enumerate(classes)}
    images = thumbnails((data.paths[row] for row in found.rows.tolist()), MAP_IMAGE[0])
    groups = [data.class_groups[c] for c in classes] if data.class_groups else []
    return {
        "names": [shorten(data.class_names[c], NAME_LENGTH) for c in classes],
        "groups": [shorten(group, NAME_LENGTH) for group in groups],
        "classes": [places[label] for label in labels.tolist()],
        "images": [webp(image, MAP_IMAGE[1]) if image else "" for image in images],
    }
