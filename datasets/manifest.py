"""Reads labelled images from a table, wherever their files are.

<root>/manifest.csv, .tsv or .parquet, with these columns in any order; others are ignored:

    path      of an image, relative to <root> or absolute
    label     its class, whose words it is unless <root>/classes.json has others
    split     optional: train, val, test; or query and gallery instead of test
    caption   optional: a sentence about it

Without a split, classes are halved. ``datasets.caption_index`` reads a table without labels.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from datasets.caption_index.layouts import columns, delimiter, plain_column
from datasets.folders import described, listed
from datasets.image_set import ImageSet
from datasets.oddities import identity

REQUIRED = ("path", "label")
OPTIONAL = ("split", "caption")
SPLITS = ("train", "val", "test", "query", "gallery")


class Line(NamedTuple):
    number: int  # in the file, from 1
    path: Path
    label: str
    split: str  # "" if the table has no such column
    caption: str


def read_manifest(file: Path) -> dict[str, ImageSet]:
    """Return the images by part: train, test and perhaps val; "all" without a split.

    Images are in the order of the table, classes in that of their labels. Query and gallery are one
    test set (``ImageSet.queries``). Val may share classes with train, test may not. Raises
    ValueError or FileNotFoundError, which name the line.
    """
    lines = list(_lines(file))
    _refuse_wrong_lines(file, lines)
    labels, numbers = np.unique([line.label for line in lines], return_inverse=True)
    names, groups = described(file.parent, labels.tolist())
    paths = tuple(line.path for line in lines)
    captions = tuple(line.caption for line in lines if line.caption)  # of all images or none
    numbers = numbers.astype(np.int64)
    images = ImageSet(file.parent.name, paths, numbers, names, groups, captions)
    splits = np.array([line.split for line in lines])
    if not splits[0]:
        return {"all": images}
    _refuse_wrong_splits(file, lines)
    rows = {split: np.flatnonzero(splits == split) for split in SPLITS}
    rows["test"] = np.concatenate([rows["test"], rows["query"], rows["gallery"]])
    parts = {
        part: images.subset(rows[part], f"{images.name}.{part}")
        for part in ("train", "val", "test")
        if len(rows[part])
    }
    if len(rows["query"]):
        queries = np.arange(len(rows["test"])) < len(rows["query"])
        parts["test"] = replace(parts["test"], queries=queries)
    return parts


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
        split = values.get("split", "").lower()
        caption = " ".join(values.get("caption", "").split())
        yield Line(number, file.parent / values["path"], values["label"], split, caption)


def _cells(file: Path, n_columns: int) -> Iterator[tuple[int, list[str]]]:
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


def _refuse_wrong_lines(file: Path, lines: Sequence[Line]) -> None:
    if not lines:
        raise ValueError(f"{file} lists no images; give it a line for each")
    first: dict[object, Line] = {}
    for line in lines:
        before = first.setdefault(identity(line.path), line)  # under whatever spelling, or a link
        if before is not line:
            name = "" if before.path == line.path else f" as {before.path}"
            raise ValueError(
                f"{file}, line {line.number}: {line.path} is on line {before.number} already{name};"
                " list an image once, with one label and one split"
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


def _refuse_wrong_splits(file: Path, lines: Sequence[Line]) -> None:
    first = {line.split: line for line in reversed(lines)}
    by_split = Counter(line.split for line in lines)
    counts = ", ".join(f"{count} {split}" for split, count in by_split.items())
    if "test" in first and ("query" in first or "gallery" in first):
        clash = first.get("query") or first["gallery"]
        raise ValueError(
            f"{file}, line {clash.number}: {clash.split} stands beside test ({counts}); use either "
            "test, or query and gallery"
        )
    if "train" not in first or not ("test" in first or {"query", "gallery"} <= set(first)):
        raise ValueError(
            f"{file} names {counts} images; it needs train, and test or both query and gallery. "
            "Leave out the column split to test on half of the classes"
        )
    seen = {line.label: line for line in reversed(lines) if line.split in ("train", "val")}
    shared = [line for line in lines if line.label in seen and line.split not in ("train", "val")]
    if shared:
        line, other = shared[0], seen[shared[0].label]
        labels = listed(sorted({line.label for line in shared}), most=5)
        raise ValueError(
            f"{file}, line {line.number}: the label {line.label!r} is in {line.split}, and on line "
            f"{other.number} in {other.split}; test classes must not be trained on (shared: "
            f"{labels}). Move all images of a label to one side; images of trained classes may be "
            "val"
        )
