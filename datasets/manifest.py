"""Reads labelled images from a table, wherever their files are.

<root>/manifest.csv, .tsv or .parquet, with these columns in any order; others are ignored:

    path      of an image, relative to <root> or absolute
    label     its class, whose words it is unless <root>/classes.json has others
    split     optional: train, val, test; or query and gallery instead of test; train alone tests
              on nothing
    caption   optional: a sentence about it; in parquet also a list of them

A line may repeat an image's path to give it another caption.
Without a split, classes are halved. ``datasets.caption_index`` reads a table without labels.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from datasets.caption_index.layouts import columns, dialect, plain_column
from datasets.folders import described, listed
from datasets.image_set import ImageSet
from utilities.captions import join
from utilities.files import file_id, json_name

MISSING = ("nan", "<na>", "#n/a", "n/a", "null")  # as tables write a value that is not there
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
    """Return the images by part: train, and perhaps test and val; "all" without a split.

    Images are in the order of the table, classes in that of their labels. Query and gallery are one
    test set (``ImageSet.queries``). Val may share classes with train, test may not. Raises
    ValueError or FileNotFoundError, which name the line.
    """
    lines = _with_all_captions(file, list(_lines(file)))
    _refuse_wrong_lines(file, lines)
    labels, numbers = np.unique([line.label for line in lines], return_inverse=True)
    about = described(file.parent, labels.tolist())
    paths = tuple(line.path for line in lines)
    captions = tuple(line.caption for line in lines if line.caption)  # of all images or none
    numbers = numbers.astype(np.int64)
    images = ImageSet(file.parent.name, paths, numbers, captions=captions, **about._asdict())
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
        found = {name: cells[column] for name, column in place.items()}
        try:
            caption = found.pop("caption", None)
            caption = "" if _is_missing(caption) else join(caption, "caption")
            values = {name: _text(value, name) for name, value in found.items()}
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: the {error}") from error
        for name in REQUIRED:
            if not values[name]:
                raise ValueError(
                    f"{file}, line {number}: the {name} is empty; fill it in or remove the line"
                )
        if values["label"].casefold() in MISSING:
            raise ValueError(
                f"{file}, line {number}: the label {values['label']!r} stands for a missing value; "
                "fill it in or remove the line. A class of this name needs another label, and its "
                "name in classes.json"
            )
        if "split" in values and values["split"].lower() not in SPLITS:
            raise ValueError(
                f"{file}, line {number}: the split {values['split']!r} is unknown; use one of "
                f"{', '.join(SPLITS)}, or leave out the column to test on half of the classes"
            )
        split = values.get("split", "").lower()
        yield Line(number, file.parent / values["path"], values["label"], split, caption)


def _text(value: object, name: str) -> str:
    """Return a cell as text; a whole number is the same in any column (pandas makes 1 a 1.0)."""
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be a text or a number; got {json_name(value)}")
    return str(value).strip()


def _is_missing(value: object) -> bool:
    return value is None or value != value  # NaN


def _cells(file: Path, n_columns: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the number and the cells of each line: texts, of a parquet table any values."""
    try:
        if file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(file)
            values = [column.to_pylist() for column in table.columns]
            yield from enumerate(zip(*values, strict=True), start=1)
            return
        encoding, delimiter = dialect(file)
        with file.open(encoding=encoding, newline="") as text:
            rows = csv.reader(text, delimiter=delimiter, strict=True)
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
    except UnicodeError as error:
        raise ValueError(f"{file} must be in UTF-8, or UTF-16 with its mark; {error}") from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise ValueError(f"the manifest {file} cannot be read: {error}") from error


def _with_all_captions(file: Path, lines: Sequence[Line]) -> list[Line]:
    """Return a line for each image; lines that repeat its path may add captions and nothing else.

    Two spellings of a path, and links, are one image. Raises ValueError for other lines that
    repeat one.
    """
    first: dict[object, Line] = {}
    for line in lines:
        place = file_id(line.path) or line.path
        before = first.setdefault(place, line)
        if before is line:
            continue
        captions = [*before.caption.split("\n"), line.caption]
        if (
            (before.label, before.split) != (line.label, line.split)
            or not all(captions)
            or line.caption in captions[:-1]
        ):
            raise ValueError(
                f"{file}, line {line.number}: {line.path} is on line {before.number} already"
                + (f" as {before.path}" if before.path != line.path else "")
                + "; list an image once, with one label and one split, or repeat both with another "
                "caption"
            )
        first[place] = before._replace(caption="\n".join(captions))
    return list(first.values())


def _refuse_wrong_lines(file: Path, lines: Sequence[Line]) -> None:
    if not lines:
        raise ValueError(f"{file} lists no images; give it a line for each")
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
    if "train" not in first or len({"query", "gallery"} & set(first)) == 1:
        raise ValueError(
            f"{file} names {counts} images; it needs train, and may have test, or both query and "
            "gallery. Leave out the column split to test on half of the classes"
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
