"""``words_<dataset>.html``: whether words predict looks, on one page that opens from disk.

For ``python -m language.check``: its advice, every kind of words that was compared, and each class
(or captioned image) beside the one whose words are nearest, with pictures of both.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.image_set import Images
from evaluation.render import render
from evaluation.report_images import webp
from utilities.files import atomic_path

PICTURE = (56, 2048)  # px and bytes
PER_ITEM = 2  # pictures of a class
EXAMPLES = 10  # of words that agree with looks, and as many of words that do not
MOST_ITEMS = 300  # in the list of all; of more, evenly spaced ones
CHART = 120  # px, width of the bars of correlations


class Compared(NamedTuple):
    """A kind of words, as a row of the table."""

    words: str  # of --language_words
    model: str  # of --language_model
    prompt: str  # "" for none
    option: str  # another flag, or ""
    correlation: float
    error: float  # half of its 95 % interval
    chance: tuple[float, float]  # between which 99 % of permuted words lie
    place: float  # median visual rank of the nearest
    chance_place: float


class Nearest(NamedTuple):
    """The items whose words are nearest to those of each of C items."""

    names: Sequence[str]  # (C,)
    texts: Sequence[str]  # (C,) the words that were compared; may be the names
    rows: Sequence[Sequence[int]]  # (C,) rows of each item's images in the set
    other: NDArray[np.int64]  # (C,)
    cosines: NDArray[np.floating]  # (C,) of the words of both
    places: NDArray[np.floating]  # (C,) visual rank of ``other``, 1 to C - 1


def write_page(
    path: Path,
    *,
    title: str,
    what: tuple[str, str],
    facts: Sequence[str],
    advice: Sequence[str],
    flags: str,
    table: Sequence[Compared],
    chosen: int,
    readings: Mapping[str, str],
    nearest: Nearest | None,
    images: Images,
) -> None:
    """Write the page.

    Args:
        what: the items, in singular and plural.
        facts: about what was measured.
        advice: sentences, the first being the verdict.
        flags: to be pasted; may be empty.
        chosen: place in ``table`` of the words that ``nearest`` shows.
        readings: by text encoder, the names that it cannot read; empty if it reads all.
        nearest: None if there are too few items to compare.
    """
    groups = _groups(nearest) if nearest else {}
    page = render(
        "words.html",
        ["style.css", "words.css"],
        title=title,
        what=what[0],
        whats=what[1],
        facts=facts,
        advice=advice,
        flags=flags,
        table=table,
        chosen=chosen,
        bars=_bars(table),
        chart=CHART,
        readings=readings,
        nearest=nearest,
        groups=groups,
        items=_pictures(nearest, groups, images) if nearest else {},
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _groups(nearest: Nearest) -> dict[str, list[int]]:
    """Return the items of each section: words that agree with looks, that do not, and all."""
    n = len(nearest.names)
    certain = np.flatnonzero(nearest.cosines >= np.median(nearest.cosines))
    by_place = certain[np.lexsort((-nearest.cosines[certain], nearest.places[certain]))].tolist()
    few = min(EXAMPLES, len(by_place) // 2)
    # A pair whose words are nearest to each other is shown once.
    pairs = {frozenset((item, int(nearest.other[item]))): item for item in reversed(by_place)}
    by_place = [
        item for item in by_place if pairs[frozenset((item, int(nearest.other[item])))] == item
    ]
    every = np.unique(np.linspace(0, n - 1, min(n, MOST_ITEMS)).astype(int)).tolist()
    return {"agree": by_place[:few], "differ": by_place[::-1][:few], "all": every}


def _bars(table: Sequence[Compared]) -> list[dict[str, float]]:
    """Return, on one scale, px of each correlation, its interval, zero, and chance."""
    ends = [0.0]
    for row in table:
        ends += [row.correlation - row.error, row.correlation + row.error, *row.chance]
    low, high = min(ends), max(ends)

    def at(value: float) -> float:
        return round(CHART * (value - low) / max(high - low, 1e-9), 1)

    return [
        {
            "zero": at(0), "value": at(row.correlation), "from": at(row.correlation - row.error),
            "to": at(row.correlation + row.error), "low": at(row.chance[0]),
            "high": at(row.chance[1]),
        }
        for row in table
    ]  # fmt: skip


def _pictures(
    nearest: Nearest, groups: Mapping[str, Sequence[int]], images: Images
) -> dict[int, list[str]]:
    """Return data URIs of the pictures of each item that is shown."""
    shown = {item for items in groups.values() for item in items}
    shown |= {int(nearest.other[item]) for item in shown}
    rows = {item: list(nearest.rows[item][:PER_ITEM]) for item in sorted(shown)}
    wanted = [row for some in rows.values() for row in some]

    def picture(row: int) -> str:
        try:
            image = images.read(row)
        except OSError:
            return ""
        image.thumbnail((PICTURE[0], PICTURE[0]), Image.Resampling.LANCZOS)
        return f"data:image/webp;base64,{webp(image, PICTURE[1])}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources: dict[Any, str] = dict(zip(wanted, pool.map(picture, wanted), strict=True))
    return {item: [sources[row] for row in some if sources[row]] for item, some in rows.items()}
