"""Reads labelled images from a table, wherever their files are.

<root>/manifest.csv, .tsv or .parquet, with these columns in any order:

    path      of an image, relative to <root> or absolute
    label     its class, whose words it is unless <root>/classes.json has others
    split     optional: train, val, test; or query and gallery instead of test
    caption   optional: a sentence about it

Other columns are ignored. Without a split, classes are halved like those of folders. A table
without labels is one of captions, see ``datasets.caption_index``.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from datasets.caption_index import columns, delimiter, plain_column
from datasets.folders import described, listed
from datasets.image_set import ImageSet

REQUIRED = ("path", "label")
OPTIONAL = ("split", "caption")
SPLITS = ("train", "val", "test", "query", "gallery")


class Line(NamedTuple):
    """A row of the table."""

    number: int  # in the file, from 1
    path: Path
    label: str
    split: str  # "" if the table has no such column
    caption: str


def read_manifest(file: Path) -> dict[str, ImageSet]:
    """Return the images by part: train, test and perhaps val; "all" without a split.

    Images are in the order of the table, classes in that of their labels. Query and gallery are one
    test set (``ImageSet.queries``). Val may share classes with train, test may not.

    Raises:
        ValueError: the table cannot be read, a column, label or caption is missing, a split is
            unknown or has no images, an image is listed twice, or a label is trained on and tested
            on. Names the line.
        FileNotFoundError: an image does not exist. Names the line.
    """
    lines = list(_lines(file))
    _refuse_wrong_lines(file, lines)
    name = file.parent.name
    labels = sorted({line.label for line in lines})
    names, groups = described(file.parent, labels)
    about = dict(zip(labels, zip(names, groups or [""] * len(labels), strict=True), strict=True))
    by_split: dict[str, list[Line]] = {}
    for line in lines:
        by_split.setdefault(line.split, []).append(line)
    if set(by_split) == {""}:
        return {"all": _image_set(name, lines, about)}

    _refuse_wrong_splits(file, by_split)
    train, val = by_split["train"], by_split.get("val", [])
    test = by_split.get("test") or [*by_split["query"], *by_split["gallery"]]
    _refuse_shared_labels(file, train, test)
    _refuse_shared_labels(file, val, test)
    parts = {"train": train, "val": val, "test": test}
    return {
        part: _image_set(f"{name}.{part}", of_part, about)
        for part, of_part in parts.items()
        if of_part
    }


def _image_set(name: str, lines: Sequence[Line], about: dict[str, tuple[str, str]]) -> ImageSet:
    labels, numbers = np.unique([line.label for line in lines], return_inverse=True)
    names, groups = zip(*(about[str(label)] for label in labels), strict=True)
    queries = np.array([line.split == "query" for line in lines])
    return ImageSet(
        name,
        tuple(line.path for line in lines),
        numbers.astype(np.int64),
        names,
        groups if any(groups) else (),
        tuple(line.caption for line in lines) if any(line.caption for line in lines) else (),
        queries=queries if queries.any() else None,
    )


# --------------------------------------------------------------------------------------- the table


def _lines(file: Path) -> Iterator[Line]:
    header = [plain_column(name) for name in columns(file)]
    missing = [name for name in REQUIRED if name not in header]
    twice = [name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1]
    if missing or twice:
        wrong = f"no column `{missing[0]}`" if missing else f"two columns `{twice[0]}`"
        raise ValueError(
            f"{file} has {wrong} (it has: {', '.join(header)}); it needs {' and '.join(REQUIRED)}, "
            f"and may have {' and '.join(OPTIONAL)}"
        )
    place = {name: header.index(name) for name in (*REQUIRED, *OPTIONAL) if name in header}
    for number, cells in _cells(file, len(header)):
        values = {name: cells[column].strip() for name, column in place.items()}
        for name in REQUIRED:
            if not values[name]:
                raise ValueError(
                    f"{file}, line {number}: the {name} is empty; fill it in or remove the line"
                )
        if "split" in values and values["split"].lower() not in SPLITS:
            raise ValueError(
                f"{file}, line {number}: the split {values['split']!r} is unknown; use one of "
                f"{', '.join(SPLITS)}, or leave out the column to test on half of the classes"
            )
        yield Line(
            number,
            file.parent / values["path"],
            values["label"],
            values.get("split", "").lower(),
            " ".join(values.get("caption", "").split()),
        )


def _cells(file: Path, n_columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line that is not blank, with its number."""
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
                        f' {n_columns}; put a cell that holds a separator in "quotes"'
                    )
                yield rows.line_num, cells
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be in UTF-8; {error}") from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise ValueError(f"the manifest {file} cannot be read: {error}") from error


# ----------------------------------------------------------------------------------------- checks


def _refuse_wrong_lines(file: Path, lines: Sequence[Line]) -> None:
    if not lines:
        raise ValueError(f"{file} lists no images; give it a line for each")
    first: dict[Path, Line] = {}
    for line in lines:
        before = first.setdefault(line.path, line)
        if before is not line:
            raise ValueError(
                f"{file}, line {line.number}: {line.path} is on line {before.number} already; list "
                "an image once, with one label and one split"
            )
    if absent := [line for line in lines if not line.path.is_file()]:
        raise FileNotFoundError(
            f"{file}, line {absent[0].number}: there is no image {absent[0].path}, and "
            f"{len(absent) - 1} more of {len(lines)} do not exist; a path must be absolute or "
            f"relative to {file.parent}"
        )
    blank = [line for line in lines if not line.caption]
    if blank and len(blank) < len(lines):
        raise ValueError(
            f"{file}, line {blank[0].number}: the caption is empty, and so are those of "
            f"{len(blank) - 1} more of {len(lines)} images; give one to each, or remove the column"
        )


def _refuse_wrong_splits(file: Path, by_split: dict[str, list[Line]]) -> None:
    present = set(by_split)
    counts = ", ".join(f"{len(lines)} {split}" for split, lines in by_split.items())
    if "test" in present and present & {"query", "gallery"}:
        clash = by_split["query" if "query" in present else "gallery"][0]
        raise ValueError(
            f"{file}, line {clash.number}: {clash.split} stands beside test ({counts}); use either "
            "test, or query and gallery"
        )
    tested = "test" in present or {"query", "gallery"} <= present
    if "train" not in present or not tested:
        raise ValueError(
            f"{file} names {counts} images; it needs train, and test or both query and gallery. "
            "Leave out the column split to test on half of the classes"
        )


def _refuse_shared_labels(file: Path, before: Sequence[Line], test: Sequence[Line]) -> None:
    seen = {line.label: line for line in reversed(before)}
    for line in test:
        if line.label in seen:
            other = seen[line.label]
            shared = sorted({line.label for line in test} & set(seen))
            raise ValueError(
                f"{file}, line {line.number}: the label {line.label!r} is in {line.split}, and on "
                f"line {other.number} in {other.split}; test classes must not be trained on "
                f"(shared: {listed(shared, most=5)}). Move all images of a label to one side; "
                "images of trained classes may be val"
            )
