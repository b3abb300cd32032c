"""Reads labelled images from a table: the entrance for images that lie wherever they lie.

<root>/manifest.csv, .tsv or .parquet, with the columns, in any order,

    path      of an image, relative to <root> or absolute
    label     its class; also the class's words, unless <root>/classes.json has better ones
    split     optional: train, val, test, or query and gallery in the place of test
    caption   optional: a sentence about it

Any other column is passed over. Without a split, classes are halved as those of folders are. A
table without labels is one of captions, see ``datasets.caption_index``.
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from datasets.caption_index import columns, delimiter, plain_column
from datasets.folders import described, listed
from datasets.image_set import ImageSet

log = logging.getLogger(__name__)

REQUIRED = ("path", "label")
OPTIONAL = ("split", "caption")
SPLITS = ("train", "val", "test", "query", "gallery")


class Line(NamedTuple):
    """A row of the table."""

    number: int  # in the file, from 1
    path: Path
    label: str
    split: str  # "" where the table has no such column
    caption: str


def read_manifest(file: Path) -> dict[str, ImageSet]:
    """The images by part: train, test and, where the table names some, val; "all" without a split.

    Images are in the order of the table, classes in that of their labels. Query and gallery are one
    test set (``ImageSet.queries``). Classes of val may be those of train, test's may not.

    Raises:
        ValueError: the table cannot be read, a column, label or caption is missing, a split is
            unknown or has no images, an image is listed twice, or a label is trained on and tested
            on. All name the line.
        FileNotFoundError: an image does not exist.
    """
    lines = list(_lines(file))
    if not lines:
        raise ValueError(f"{file} lists no images; give it a line for each")
    _refuse_twice(file, lines)
    _refuse_absent(file, lines)
    _refuse_blank_captions(file, lines)
    by_split: dict[str, list[Line]] = {}
    for line in lines:
        by_split.setdefault(line.split, []).append(line)
    root = file.parent
    labels = sorted({line.label for line in lines})
    about = dict(zip(labels, zip(*_described(root, labels), strict=True), strict=True))
    if set(by_split) == {""}:
        return {"all": _image_set(root.name, lines, about)}

    _refuse_parts(file, by_split)
    test = by_split.get("test") or [*by_split["query"], *by_split["gallery"]]
    _refuse_shared(file, by_split["train"], test)
    if "val" in by_split:
        _refuse_shared(file, by_split["val"], test)
    parts = {"train": by_split["train"], "val": by_split.get("val"), "test": test}
    return {
        part: _image_set(f"{root.name}.{part}", some, about) for part, some in parts.items() if some
    }


def _described(root: Path, labels: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    names, groups = described(root, labels)
    return names, groups or [""] * len(labels)


def _image_set(name: str, lines: Sequence[Line], about: dict[str, tuple[str, str]]) -> ImageSet:
    labels, numbers = np.unique([line.label for line in lines], return_inverse=True)
    names, groups = zip(*(about[str(label)] for label in labels), strict=True)
    asks = np.array([line.split == "query" for line in lines])
    return ImageSet(
        name,
        tuple(line.path for line in lines),
        numbers.astype(np.int64),
        names,
        groups if any(groups) else (),
        tuple(line.caption for line in lines) if any(line.caption for line in lines) else (),
        queries=asks if asks.any() else None,
    )


# ------------------------------------------------------------------------------------- the table


def _lines(file: Path) -> Iterator[Line]:
    given = [plain_column(name) for name in columns(file)]
    missing = [name for name in REQUIRED if name not in given]
    twice = [name for name in (*REQUIRED, *OPTIONAL) if given.count(name) > 1]
    if missing or twice:
        wrong = f"no column `{missing[0]}`" if missing else f"two columns `{twice[0]}`"
        raise ValueError(
            f"{file} has {wrong} (it has: {', '.join(given)}); it needs {' and '.join(REQUIRED)}, "
            f"and may have {' and '.join(OPTIONAL)}"
        )
    place = {name: given.index(name) for name in (*REQUIRED, *OPTIONAL) if name in given}
    for number, cells in _cells(file, len(given)):
        values = {name: cells[column].strip() for name, column in place.items()}
        for name in REQUIRED:
            if not values[name]:
                raise ValueError(
                    f"{file}, line {number}: the {name} is empty; fill it in or remove the line"
                )
        if "split" in values and values["split"].lower() not in SPLITS:
            raise ValueError(
                f"{file}, line {number}: the split {values['split']!r} is unknown; use one of "
                f"{', '.join(SPLITS)}, or leave the column out, then half of the classes are "
                "tested on"
            )
        yield Line(
            number,
            file.parent / values["path"],
            values["label"],
            values.get("split", "").lower(),
            " ".join(values.get("caption", "").split()),
        )


def _cells(file: Path, n_columns: int) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that is not blank, with its number."""
    try:
        if file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(file)
            values = [column.to_pylist() for column in table.columns]
            for number, row in enumerate(zip(*values, strict=True), start=1):
                yield number, ["" if cell is None else str(cell) for cell in row]
            return
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, delimiter=delimiter(file), strict=True)
            next(rows)
            for cells in rows:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != n_columns:
                    raise ValueError(
                        f"{file}, line {rows.line_num}: {len(cells)} cells where the first line has"
                        f' {n_columns}; a cell with a separator in it stands in "quotes"'
                    )
                yield rows.line_num, cells
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error}); save it so") from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise ValueError(f"the manifest {file} cannot be read: {error}") from error


# ---------------------------------------------------------------------------------- what is wrong


def _refuse_twice(file: Path, lines: Sequence[Line]) -> None:
    first: dict[Path, Line] = {}
    for line in lines:
        before = first.setdefault(line.path, line)
        if before is not line:
            raise ValueError(
                f"{file}, line {line.number}: {line.path} is on line {before.number} already; an "
                "image is listed once, with one label and in one split"
            )


def _refuse_absent(file: Path, lines: Sequence[Line]) -> None:
    absent = [line for line in lines if not line.path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{file}, line {absent[0].number}: there is no image {absent[0].path}, and "
            f"{len(absent) - 1} more of {len(lines)} do not exist; a path is absolute or begins in "
            f"{file.parent}"
        )


def _refuse_blank_captions(file: Path, lines: Sequence[Line]) -> None:
    blank = [line for line in lines if not line.caption]
    if blank and len(blank) < len(lines):
        raise ValueError(
            f"{file}, line {blank[0].number}: the caption is empty, and so are those of "
            f"{len(blank) - 1} more of {len(lines)} images; give one to each, or remove the column"
        )


def _refuse_parts(file: Path, by_split: dict[str, list[Line]]) -> None:
    there = set(by_split)
    counts = ", ".join(f"{len(lines)} {split}" for split, lines in by_split.items())
    if "test" in there and there & {"query", "gallery"}:
        clash = by_split["query" if "query" in there else "gallery"][0]
        raise ValueError(
            f"{file}, line {clash.number}: {clash.split} stands beside test ({counts}); test "
            "images query one another, or there are query and gallery and no test"
        )
    tested = {"test"} <= there or {"query", "gallery"} <= there
    if "train" not in there or not tested:
        raise ValueError(
            f"{file} names {counts} images; it needs train, and test or both query and gallery. "
            "Without the column split, half of the classes are tested on"
        )


def _refuse_shared(file: Path, before: Sequence[Line], test: Sequence[Line]) -> None:
    """Classes are tested on that were never seen."""
    seen = {line.label: line for line in reversed(before)}
    for line in test:
        if line.label in seen:
            other = seen[line.label]
            shared = sorted({line.label for line in test} & set(seen))
            raise ValueError(
                f"{file}, line {line.number}: the label {line.label!r} is in {line.split}, and on "
                f"line {other.number} in {other.split}; classes are tested on that training never "
                f"saw (shared: {listed(shared, most=5)}). Move each label's images to one side; "
                "images of trained classes can be val"
            )
