"""``report.html``: a run on one page that opens from disk, without network, all images included.

Its size is at most ``MAX_BYTES`` for any N: images are encoded to fit, sections are cut.
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluation.report_images as images
from evaluation.pictures import VIEWS, map_picture, retrieval_picture, shorten, similarity_picture
from evaluation.render import render
from evaluation.report_classes import class_scores, pulled_pairs, similarities
from evaluation.report_curves import BOX, LEFT, WIDTH, panels
from evaluation.report_data import ReportData
from evaluation.report_header import facts, flag_lists
from evaluation.report_retrieval import N_NEIGHBOURS, image_map, retrievals
from evaluation.report_scores import by_protocol, kinds_in, score_tables, word_scores
from evaluation.report_words import N_ASIDE, word_finds
from evaluation.scores import of_intervals
from evaluation.verdict import Verdict
from evaluation.word_search import PERMUTED
from metrics import Interval
from utilities.files import atomic_path

MAX_BYTES = 10_000_000  # of report.html, with any names; kept by the limits here and of its images
TABLE_CLASSES = 1000  # half with the lowest and half with the highest scores
COMMAND_LENGTH = 2000


def write_report(
    folder: Path,
    data: ReportData,
    *,
    rows: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, str],
    intervals: Mapping[str, Interval] | None = None,
    changes: Mapping[str, Interval] | None = None,
    config: Mapping[str, Any],
    changed: Container[str] = (),
    verdict: Verdict | None = None,
) -> dict[str, Path]:
    """Write the pictures and ``report.html`` of a run into its folder.

    Args:
        rows: ``{"epoch": int, score: float or None}`` as in metrics.jsonl, oldest first.
        protocols, intervals: by score, as in ``Scores``; may be empty.
        changes: 95 % intervals of the changes of scores since epoch 0; may be empty.
        config: the contents of config.json, or flags by name.
        changed: names of the flags that are listed first.
        verdict: what training changed, if anything was trained.

    Returns:
        the files by name: "retrieval", "similarities" and "map" are PNGs, "report" is the page. A
        picture without content (no class has two images, there is only one class) is left out.
    """
    queries, matrices = retrievals(data), similarities(data)
    points, pulled, finds = image_map(data), pulled_pairs(data), word_finds(data)
    written = {}
    if any(queries.values()):
        written["retrieval"] = folder / "retrieval.png"
        retrieval_picture(data, queries, written["retrieval"])
    if len(matrices.classes) > 1:
        written["similarities"] = folder / "similarities.png"
        similarity_picture(data, matrices, written["similarities"])
    written["map"] = folder / "map.png"
    map_picture(data, points, written["map"])

    intervals, changes, classes = intervals or {}, changes or {}, class_scores(data)
    kinds = kinds_in(rows)
    controls = [kind for kind in kinds if kind == PERMUTED]
    others = [kind for kind in kinds if kind != PERMUTED]
    changed_flags, other_flags = flag_lists(config, changed)
    map_images = images.map_images(data, points)
    circles = images.map_circles(data, points)
    page = render(
        "page.html",
        ["style.css"],
        "script.js",
        title=folder.resolve().name,
        shown=data,
        verdict=verdict,
        facts=facts(config),
        command=shorten(config.get("command", ""), COMMAND_LENGTH),
        tables=score_tables(rows, intervals, changes, others),
        controls=score_tables(rows, intervals, changes, controls),
        has_intervals=bool(intervals),
        has_changes=bool(changes),
        protocols=by_protocol(rows, protocols),
        over=of_intervals(protocols),
        curves=panels(rows),
        box=BOX,
        right=LEFT + WIDTH,
        k=N_NEIGHBOURS,
        compared=data.before is not None,
        queries=images.query_tiles(data, queries),
        finds=finds,
        name_tiles=images.name_tiles(data, finds.searches) if finds else {},
        word_scores=word_scores(rows, intervals) if finds else [],
        n_aside=N_ASIDE,
        matrices=images.matrix_images(matrices),
        row_labels=images.row_labels(data, matrices),
        row_box=images.ROW_BOX,
        similarities=matrices,
        pulled=pulled,
        pair_images=images.pair_images(data, pulled),
        image_map=points,
        map=circles,
        map_thumbnails=images.map_thumbnails(circles["circles"], map_images["images"]),
        map_side=images.MAP_SIDE,
        views=images.views_source(folder / VIEWS),
        classes=_ends(classes),
        n_classes=len(classes),
        changed_flags=changed_flags,
        other_flags=other_flags,
        data={
            "matrices": images.matrix_values(data, matrices),
            "map": map_images,
        },
    )
    written["report"] = folder / "report.html"
    with atomic_path(written["report"]) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return written


def _ends(table: Sequence[Any]) -> list[Any]:
    """Return all classes, or if they are too many those with the lowest and highest scores."""
    if len(table) <= TABLE_CLASSES:
        return list(table)
    return [*table[: TABLE_CLASSES // 2], *table[-(TABLE_CLASSES // 2) :]]
