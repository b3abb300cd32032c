"""Finds the image-caption pairs of a folder once and keeps them as an index.

    <root>/<directory>/<id>.<jpg or another>      beside <id>.json ({"caption": ...}) or <id>.txt
    <root>/<shard>.tar                            with <key>.jpg and <key>.json or <key>.txt, as
                                                  img2dataset and WebDataset write them
    <root>/<manifest>.{parquet,csv,tsv}           with a column of paths and one of captions; a
                                                  manifest.* with a column `label` is of labelled
                                                  images, see `datasets.manifest`

An image may have several captions: a list in its JSON file or in a parquet table, lines in its text
file, or lines of a table that repeat its path.

The index, `index.arrow`, is an uncompressed Arrow IPC file with a row per pair, memory-mapped, so
that opening takes milliseconds and no memory whatever N is. It lies beside the images, or in the
cache if the folder cannot be written; `index_skipped.csv` lists the images that are skipped, and
why.

Changes are seen by the times of directories, shards and manifests. In a part that changed, an image
is read again only if its own stamp has changed. A file that was overwritten in place leaves its
directory's time unchanged: of the first 100,000 files each is looked at, and
`python -m datasets.caption_index FOLDER` looks at all of them.
"""

import csv
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, reduce
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.caption_index.layouts import INDEX, SKIPPED, is_caption_set, layout, names, parts
from datasets.caption_index.rows import READERS, Look, OpenShards, Row, Skipped
from datasets.folders import listed
from datasets.image_files import refuse_unreadable_names
from utilities.checksums import digest
from utilities.disk_cache import Entry
from utilities.progress import bar

__all__ = [
    "BATCH",
    "INDEX",
    "SKIPPED",
    "Head",
    "OpenShards",
    "build",
    "is_caption_set",
    "open_index",
]

LOG = logging.getLogger(__name__)

BATCH = 1 << 16  # rows of a record batch
SETTLED = 2.0  # seconds; a change within the file system's tick would not show in a later time
VERSION = 3

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # path below the root, `shard.tar/member`, or a manifest's path
        ("caption", pa.string()),  # not blank; a line for each of several
        ("width", pa.int32()),  # of the image, from its header
        ("height", pa.int32()),
        ("part", pa.int32()),  # the directory, shard or manifest: its place among them, sorted
        ("offset", pa.int64()),  # of the image file in its shard; -1 for a file of its own
        ("size", pa.int64()),  # of the image file, bytes
        ("stamp", pa.int64()),  # digest of the key and of the files' sizes and times
    ]
)
_EXPECTED = """; expected one of
  {root}/<directory>/<id>.jpg beside <id>.json with {{"caption": ...}} or <id>.txt
  {root}/<shard>.tar with <key>.jpg and <key>.json or <key>.txt
  {root}/<manifest>.parquet, .csv or .tsv with columns such as `path` and `caption`"""
_PLURALS = {"pairs": "directories", "shards": "shards", "manifests": "manifests"}


class Head(NamedTuple):
    layout: str  # of the folder; kept in the schema's metadata
    parts: dict[str, str]  # name of a directory, shard or manifest -> its stamp; sorted by name


def open_index(file: Path, *, verify: bool = False) -> tuple["pa.ipc.RecordBatchFileReader", Head]:
    """Return an index, memory-mapped, and its description; OSError or ValueError if unusable.

    ``verify`` reads all of it and compares checksums, about 1 s for 10 million pairs.
    """
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    try:
        head = json.loads((reader.schema.metadata or {})[b"caption_set"])
        if head["version"] != VERSION or reader.schema.remove_metadata() != SCHEMA:
            raise ValueError(f"{file} is of version {head['version']}, expected {VERSION}")
        for number in range(reader.num_record_batches if verify else 0):
            batch, about = reader.get_batch_with_custom_metadata(number)
            if int((about or {})[b"checksum"]) != _checksum(batch):
                raise ValueError(f"{file} is damaged")
        return reader, Head(head["layout"], dict(head["parts"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not an index of image-caption pairs") from error


def build(root: Path, *, recheck: bool = False) -> Path:
    """Return the index of the image-caption pairs in ``root``, written or updated if need be.

    ``recheck`` looks at every file, not only at parts whose time has changed.

    Raises:
        FileNotFoundError: there are no image-caption pairs; shows the layouts.
        ValueError: a manifest has no column of paths or captions; lists those it has. A name of a
            directory, shard or manifest is not in UTF-8.
    """
    kind = layout(root)
    if kind is None:
        found = listed(sorted(islice(names(root), 8))) or "nothing"
        raise FileNotFoundError(
            f"{root} holds no image-caption pairs (it holds: {found}){_EXPECTED.format(root=root)}"
        )
    head = Head(kind, parts(root, kind)[0])
    refuse_unreadable_names([root, *(Path(part) for part in head.parts)])
    if not recheck and _is_current(root, head):  # also one that another user has made
        return root / INDEX
    beside = os.access(root, os.W_OK)
    if beside:
        entry = Entry("", ".index", "", root=root)  # for its lock
    else:
        entry = Entry("captions", root.name, digest([str(root.resolve())]), unhashed=(INDEX,))
    place = root if beside else entry.folder
    with entry.locked():
        previous = root if beside else entry.read()
        if not recheck and _is_current(previous, head):
            return place / INDEX
        head = Head(kind, _settled_parts(root, kind))
        old = _Previous(previous, kind, recheck)
        if not beside:
            return entry.write(lambda fresh: _write(root, head, old, fresh, place)) / INDEX
        for left in root.glob(".index.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".index.") as fresh:
            _write(root, head, old, Path(fresh), place)
            for name in (SKIPPED, INDEX):
                (Path(fresh) / name).replace(root / name)
    return place / INDEX


def _is_current(folder: Path | None, head: Head) -> bool:
    try:
        return folder is not None and open_index(folder / INDEX, verify=True)[1] == head
    except OSError:  # pyarrow's own are among them
        return False
    except ValueError as error:
        LOG.warning("%s; making it again", error)
        return False


def _settled_parts(root: Path, kind: str) -> dict[str, str]:
    """Return the parts once no later change can have the time of the last one."""
    found, latest = parts(root, kind)
    remaining = latest + SETTLED - time.time()
    if 0 < remaining <= SETTLED:  # a time in the future is never waited for
        time.sleep(remaining)
        found, _ = parts(root, kind)
    return found


class _Previous:
    """The index that was there before, if any: rows that need not be read again."""

    def __init__(self, folder: Path | None, kind: str, recheck: bool) -> None:
        self.numbers: dict[str, int] = {}  # of the parts in the table
        self.parts: dict[str, str] = {}  # with their stamps, those to compare
        self.table = SCHEMA.empty_table()
        self.skipped: list[list[str]] = []
        if folder is None:
            return
        with suppress(OSError, ValueError, csv.Error):
            reader, head = open_index(folder / INDEX, verify=True)
            if head.layout == kind:
                self.table = reader.read_all()  # memory-mapped, so nothing is read yet
                self.parts = {} if recheck else head.parts
                self.numbers = {name: number for number, name in enumerate(head.parts)}
            with (folder / SKIPPED).open(encoding="utf-8", newline="") as lines:
                self.skipped = [line for line in csv.reader(lines) if len(line) == 3][1:]

    def rows(self, part: str) -> pa.Table:
        """Return all rows of a part; the parts of an index are in ascending order."""
        number = self.numbers[part]
        first, last = np.searchsorted(self._parts, [number, number + 1]).tolist()
        return self.table.slice(first, last - first)

    def find(self, stamp: int) -> Row | None:
        stamps, order = self._stamps
        place = int(np.searchsorted(stamps, stamp))
        if place == len(stamps) or stamps[place] != stamp:
            return None
        row = int(order[place])
        return Row(*(self.table.column(field)[row].as_py() for field in Row._fields))

    @cached_property
    def _parts(self) -> NDArray[np.int32]:
        return self.table.column("part").to_numpy()

    @cached_property
    def _stamps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        stamps = self.table.column("stamp").to_numpy()
        order = np.argsort(stamps)
        return stamps[order], order


def _write(root: Path, head: Head, old: _Previous, folder: Path, place: Path) -> None:
    """Write the index and the list of skipped images into ``folder``, to be moved to ``place``."""
    kept = {part for part, _ in head.parts.items() & old.parts.items()}
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    about = {"version": VERSION, "layout": head.layout, "parts": list(head.parts.items())}
    schema = SCHEMA.with_metadata({"caption_set": json.dumps(about)})
    total = 0
    with (
        (folder / SKIPPED).open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file,
        bar(desc=f"{root.name}: index", unit="image") as shown,
        ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4)) as pool,
        pa.ipc.new_file(str(folder / INDEX), schema) as writer,
    ):
        lines = csv.writer(file)
        lines.writerow(("key", "reason", "part"))

        def skip(key: str, reason: str, part: str) -> None:
            lines.writerow((key, reason, part))
            reasons[reason.partition(":")[0]] += 1
            if len(examples) < 3:
                examples.append(f"{key} ({reason})")

        def read(part: str) -> Iterator[Row]:
            for result in _in_order(pool, READERS[head.layout](root, part, old.find)):
                shown.update()
                if isinstance(result, Row):
                    yield result
                else:
                    skip(*result, part)

        def tables() -> Iterator[pa.Table]:
            for number, part in enumerate(head.parts):
                if number % 64 == 0:
                    shown.set_postfix_str(f"{number} of {len(head.parts)} parts")
                if part in kept:
                    table = old.rows(part).replace_schema_metadata()
                    column = pa.array(np.full(len(table), number, np.int32))
                    place = SCHEMA.get_field_index("part")
                    yield table.set_column(place, SCHEMA.field(place), column)
                    continue
                rows = ({**row._asdict(), "part": number} for row in read(part))
                while some := list(islice(rows, BATCH)):
                    yield pa.Table.from_pylist(some, SCHEMA)

        for key, reason, part in old.skipped:
            if part in kept:
                skip(key, reason, part)
        for table in _joined(tables()):
            for batch in table.replace_schema_metadata(schema.metadata).to_batches(BATCH):
                compact = pa.ipc.read_record_batch(batch.serialize(), schema)  # as in the file
                writer.write_batch(compact, {"checksum": str(_checksum(compact))})
            total += len(table)
    if not total:
        raise FileNotFoundError(
            f"{root}: none of {reasons.total()} image-caption pairs can be used: "
            + (", ".join(examples) or "there are no images")
            + _EXPECTED.format(root=root)
        )
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    LOG.log(
        logging.WARNING if reasons else logging.INFO,
        "%s: %d image-caption pairs in %d %s%s",
        *(root, total, len(head.parts), _PLURALS[head.layout]),
        f"; skipped {reasons.total()} ({counts}), listed in {place / SKIPPED}" if reasons else "",
    )


def _checksum(batch: pa.RecordBatch) -> int:
    buffers = (buffer for column in batch.columns for buffer in column.buffers())
    return reduce(lambda total, buffer: zlib.crc32(buffer or b"", total), buffers, 0)


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of at least ``BATCH`` rows, but for the last."""
    waiting: list[pa.Table] = []
    n_rows = 0
    for table in tables:
        waiting.append(table)
        n_rows += len(table)
        if n_rows >= BATCH:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, n_rows = [], 0
    if n_rows:
        yield pa.concat_tables(waiting).combine_chunks()


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Look]) -> Iterator[Row | Skipped]:
    """Yield the tasks' results in order; blocks of tasks keep the threads busy."""
    tasks = iter(tasks)
    while blocks := [block for _ in range(128) if (block := list(islice(tasks, 128)))]:
        for results in pool.map(_all_of, blocks):
            yield from results


def _all_of(tasks: list[Look]) -> list[Row | Skipped]:
    return [task() for task in tasks]
