"""``report.html``: a run on one page that opens from disk, without network, all images included.

Its size is at most ``MAX_BYTES`` for any N: images are encoded to fit, sections are cut.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import evaluation.report_images as images
from evaluation.pictures import map_picture, retrieval_picture, shorten, similarity_picture
from evaluation.render import render
from evaluation.report_classes import class_scores, pulled_pairs, similarities
from evaluation.report_data import ReportData
from evaluation.report_retrieval import N_NEIGHBOURS, image_map, retrievals
from evaluation.report_words import N_ASIDE, meaning, word_finds
from evaluation.scores import is_fraction, number, of_intervals
from evaluation.verdict import BACKBONE, Verdict
from evaluation.word_search import PERMUTED, WORDS
from metrics import Interval
from utilities.files import atomic_path

MAX_BYTES = 10_000_000  # of report.html, with any names; kept by the limits here and of its images
TABLE_CLASSES = 1000  # half with the lowest and half with the highest scores
CURVES = 40
CURVE_POINTS = 200
FLAG_LENGTH = 200


def write_report(
    folder: Path,
    data: ReportData,
    *,
    rows: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, str],
    intervals: Mapping[str, Interval] | None = None,
    config: Mapping[str, Any],
    verdict: Verdict | None = None,
) -> dict[str, Path]:
    """Write the pictures and ``report.html`` of a run into its folder.

    Args:
        rows: ``{"epoch": int, score: float or None}`` as in metrics.jsonl, oldest first. The first
            row must be an evaluation alone; its scores are the headline.
        protocols, intervals: by score, as in ``Scores``; may be empty.
        config: flags by name, or the contents of config.json.
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

    names = [name for name in (rows[0] if rows else {}) if name != "epoch" and BACKBONE not in name]
    scores = _scores(names, rows, intervals or {})
    classes = class_scores(data)
    page = render(
        "page.html",
        ["style.css"],
        "script.js",
        title=folder.resolve().name,
        shown=data,
        verdict=verdict,
        scores=scores,
        compared=any(score["untrained"] != "–" for score in scores),
        percent_only=all(map(is_fraction, names)),
        protocols=_by_protocol(names, protocols),
        over=of_intervals(protocols),
        curves=_curves(names, rows),
        k=N_NEIGHBOURS,
        queries=images.query_tiles(data, queries),
        finds=finds,
        name_tiles=images.name_tiles(data, finds.searches) if finds else {},
        word_scores=_word_scores(names, scores) if finds else [],
        n_aside=N_ASIDE,
        matrices=images.matrix_images(matrices),
        similarities=matrices,
        pulled=pulled,
        pair_images=images.pair_images(data, pulled),
        image_map=points,
        map=images.map_circles(data, points),
        classes=_ends(classes),
        n_classes=len(classes),
        flags=_flags(config),
        data={
            "matrices": images.matrix_values(data, matrices),
            "map": images.map_images(data, points),
        },
    )
    written["report"] = folder / "report.html"
    with atomic_path(written["report"]) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return written


def _scores(
    names: Iterable[str], rows: Sequence[Mapping[str, Any]], intervals: Mapping[str, Interval]
) -> list[dict[str, str]]:
    """Format the scores of the last epoch that has them beside those of epoch 0."""
    scores = []
    for name in names:
        values = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        trained = values[-1][1] if values else math.nan
        untrained = values[0][1] if len(values) > 1 and values[0][0] == 0 else math.nan
        bounds = [number(name, bound) for bound in intervals.get(name, ())]
        scores.append(
            {
                "name": name,
                "meaning": _meaning(name),
                "untrained": number(name, untrained),
                "trained": number(name, trained),
                "interval": "" if "–" in bounds else " – ".join(bounds),
                "change": number(name, trained - untrained, "+"),
            }
        )
    return scores


def _meaning(name: str) -> str:
    """Return what a score of search by words is; empty for other scores."""
    _, kind, metric = ("", "", *name.split("/"))[-3:]
    if kind not in (WORDS, PERMUTED):
        return ""
    return meaning(metric) + (", by chance" if kind == PERMUTED else "")


def _word_scores(names: Iterable[str], scores: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return the scores of search by words in the first set, each with that of permuted words."""
    formatted = {score["name"]: score for score in scores}
    paths = [name.rsplit("/", 2) for name in names]
    searched = [(first, metric) for first, kind, metric in paths if kind == WORDS]
    return [
        {
            "metric": metric,
            "meaning": meaning(metric),
            "words": formatted[f"{name}/{WORDS}/{metric}"],
            "permuted": formatted[f"{name}/{PERMUTED}/{metric}"],
        }
        for name, metric in searched
        if name == searched[0][0]
    ]


def _by_protocol(names: Iterable[str], protocols: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of the scores of each protocol, the most common protocol first."""
    measured: dict[str, list[str]] = {}
    for name in names:
        if name in protocols:
            measured.setdefault(protocols[name], []).append(name)
    return dict(sorted(measured.items(), key=lambda item: -len(item[1])))


def _curves(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return an SVG polyline in a 240 x 96 box, y downward, for each name with two values.

    Headline scores come first, their fractions in percent.
    """
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
        ends = {"first": values[0], "last": values[-1], "low": low, "high": high}
        curves.append(
            {
                "name": name,
                "points": list(zip(x.round(1).tolist(), y.round(1).tolist(), strict=True)),
                "untrained": round(float(y[0]), 1) if epochs[0] == 0 else None,
                "epochs": (int(epochs[0]), int(epochs[-1])),
                **{end: format(value, form) for end, value in ends.items()},
            }
        )
    return curves[:CURVES]


def _ends(table: Sequence[Any]) -> list[Any]:
    """Return all classes, or if they are too many those with the lowest and highest scores."""
    if len(table) <= TABLE_CLASSES:
        return list(table)
    return [*table[: TABLE_CLASSES // 2], *table[-(TABLE_CLASSES // 2) :]]


def _flags(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return flags as they would be typed, then the rest of config.json, its levels dotted."""
    lines: list[tuple[str, str]] = []
    if isinstance(config.get("flags"), Mapping):
        lines = _flags(config["flags"])
        config = {name: value for name, value in config.items() if name != "flags"}
    for name, value in config.items():
        if isinstance(value, Mapping):
            lines += [(f"{name}.{key}", text) for key, text in _flags(value)]
        else:
            plain = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            lines.append((str(name), shorten(plain, FLAG_LENGTH)))
    return lines
