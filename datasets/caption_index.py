"""Finds the image-caption pairs of a folder once and keeps them as an index.

    <root>/<directory>/<id>.<jpg or another>      beside <id>.json ({"caption": ...}) or <id>.txt
    <root>/<shard>.tar                            with <key>.jpg and <key>.json or <key>.txt, as
                                                  img2dataset and WebDataset write them
    <root>/<manifest>.{parquet,csv,tsv}           with a column of paths and one of captions; a
                                                  manifest.* with a column `label` is of labelled
                                                  images, see `datasets.manifest`

The index is one uncompressed Arrow IPC file, a row for each pair: it is memory-mapped, so that
opening it takes milliseconds and no memory whatever N is, which Parquet, being compressed and
encoded, does not allow. Any Arrow reader takes it (`pandas.read_feather`, `polars.read_ipc`).

    key      string   path below the root, `shard.tar/member`, or the path that a manifest gives
    caption  string   not blank, single spaces
    width    int32    of the image, from its header; bodies are not decoded
    height   int32
    part     int32    the directory, shard or manifest, by its place in the sorted list of them
    offset   int64    of the image file in its shard; -1 where it is a file of its own
    size     int64    of the image file, bytes
    stamp    int64    digest of the key and of the sizes and times of the files behind the row

It lies beside the images as `index.arrow` (in the cache folder where that cannot be written), and
`index_skipped.csv` with it, which lists what is left out and why.

What has changed is seen by the times of directories, shards and manifests: opening asks the file
system once for each of those, not for each image. In a part that changed, an image is read again
only if its own stamp has changed. A file that was overwritten in place, under the same name, leaves
its directory's time as it is; `python -m datasets.caption_index FOLDER` looks at every file.
"""

import argparse
import csv
import hashlib
import io
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from datasets import folders
from datasets.folders import listed
from datasets.image_files import is_image_name, special_kind
from datasets.locking import alone
from datasets.shards import Member, OpenShards, read_members
from utilities.files import atomic_path, cache_folder

log = logging.getLogger(__name__)

MANIFESTS = (".parquet", ".csv", ".tsv")
PATH_COLUMNS = ("path", "image", "file_name", "image_path", "filepath", "filename", "file")
LABEL_COLUMN = "label"
CAPTION_COLUMNS = ("caption", "text", "title")
INDEX, SKIPPED = "index.arrow", "index_skipped.csv"

MOST_EXTREME = 20  # aspect ratio; more extreme images are left out
BATCH = 1 << 16  # rows of a record batch
HEADER = 1 << 15  # bytes of a shard's image that are read for its size; more only where needed
SETTLED = 2.0  # seconds; a change within the file system's tick would not show in a later time
VERSION = 1

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("part", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.int64()),
    ]
)

_EXPECTED = """; expected one of
  {root}/<directory>/<id>.jpg beside <id>.json with {{"caption": ...}} or <id>.txt
  {root}/<shard>.tar with <key>.jpg and <key>.json or <key>.txt
  {root}/<manifest>.parquet, .csv or .tsv with columns such as `path` and `caption`"""


# ---------------------------------------------------------------------------------- recognition


def is_caption_set(root: Path) -> bool:
    """Whether ``root`` holds image-caption pairs, judged by a sample of its entries.

    A folder of class folders (``images/<class>/``) or with a manifest of labels does not, whatever
    else lies beside it.
    """
    return layout(root) is not None


def layout(root: Path) -> str | None:
    """ "shards", "pairs" or "manifests"; None where there is none of them.

    In this order: img2dataset writes a table of its own beside each shard and each directory.
    """
    if not root.is_dir() or _holds_folders(root / "images") or labelled_manifest(root):
        return None
    names = list(islice(_names(root), 4096))
    if any(name.endswith(".tar") for name in names):
        return "shards"
    if _holds_pairs(root) or any(
        _holds_pairs(root / name) for name in islice((n for n in names if "." not in n[-5:]), 16)
    ):
        return "pairs"
    manifests = [root / name for name in names if _is_manifest(name)]
    if any(any(_path_and_caption(file)) for file in manifests):
        return "manifests"
    # Folders whose names look like files come last, since each costs a question.
    if any(_holds_pairs(root / name) for name in islice(names, 64)):
        return "pairs"
    return None


def labelled_manifest(root: Path) -> Path | None:
    """``<root>/manifest.csv``, .tsv or .parquet, if it has a column of labels."""
    for file in (root / name for name in folders.MANIFESTS):
        if file.is_file() and LABEL_COLUMN in map(plain_column, columns(file)):
            return file
    return None


def _names(folder: Path) -> Iterator[str]:
    """What a folder holds, in no order, without hidden entries; nothing where it is no folder."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return


def _holds_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in islice(_names(folder), 64))


def _holds_pairs(folder: Path) -> bool:
    """Whether one of the first images has a caption beside it."""
    images = filter(is_image_name, islice(_names(folder), 2048))
    return any(
        (folder / f"{name.rpartition('.')[0]}{suffix}").is_file()
        for name in islice(images, 16)
        for suffix in (".json", ".txt")
    )


def _is_manifest(name: str) -> bool:
    return name.endswith(MANIFESTS) and name != SKIPPED


def columns(file: Path) -> list[str]:
    """The column names of a manifest. Raises ValueError, which names it, when it has none."""
    try:
        if file.suffix == ".parquet":
            return list(pyarrow.parquet.read_schema(file).names)
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            return next(csv.reader(lines, delimiter=delimiter(file)), [])
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise ValueError(f"the manifest {file} cannot be read: {error}") from error


def delimiter(file: Path) -> str:
    """What stands between the columns of a manifest in text."""
    return "\t" if file.suffix == ".tsv" else ","


def plain_column(name: str) -> str:
    """A column's name as it is compared."""
    return name.strip().lower()


def _path_and_caption(file: Path) -> tuple[str | None, str | None]:
    """The names of a manifest's two columns; None for one that it does not have."""
    try:
        found = columns(file)
    except ValueError:
        return None, None
    by_name = {plain_column(column): column for column in reversed(found)}
    path, caption = (
        next((by_name[name] for name in names if name in by_name), None)
        for names in (PATH_COLUMNS, CAPTION_COLUMNS)
    )
    return path, caption


# ----------------------------------------------------------------------------------- the index


class Head(NamedTuple):
    """What the schema's metadata say of an index."""

    layout: str
    parts: dict[str, str]  # name of a directory, shard or manifest -> its stamp; sorted by name


def open_index(file: Path) -> tuple["pa.ipc.RecordBatchFileReader", Head]:
    """An index, memory-mapped.

    Raises:
        OSError, ValueError: it is not there, or no index of this version.
    """
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    try:
        head = json.loads((reader.schema.metadata or {})[b"caption_set"])
        if head["version"] != VERSION or reader.schema.remove_metadata() != SCHEMA:
            raise ValueError(f"{file} is of version {head['version']}, expected {VERSION}")
        return reader, Head(head["layout"], dict(head["parts"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no index of image-caption pairs") from error


def build(root: Path, *, recheck: bool = False) -> Path:
    """The index of the image-caption pairs in ``root``; written, or brought up to date, if need be.

    Args:
        recheck: look at every file, not only at parts whose time has changed.

    Raises:
        FileNotFoundError: there are no image-caption pairs; shows the layouts.
        ValueError: a manifest has no column of paths or captions; lists those it has.
    """
    kind = layout(root)
    if kind is None:
        found = listed(sorted(islice(_names(root), 8))) or "nothing"
        raise FileNotFoundError(
            f"{root} holds no image-caption pairs (it holds: {found}){_EXPECTED.format(root=root)}"
        )
    beside = root / INDEX
    head = Head(kind, _parts(root, kind))
    if not recheck and _is_current(beside, head):  # also one that another user has made
        return beside
    file = beside if os.access(root, os.W_OK) else _away(root) / INDEX
    if not recheck and _is_current(file, head):
        return file
    with alone(file.with_name(".index.lock"), f"the index of {root}"):
        head = Head(kind, _parts(root, kind, settle=True))
        if recheck or not _is_current(file, head):
            for left_over in file.parent.glob(f".{INDEX}.*"):
                left_over.unlink()  # of a build that was killed
            try:
                _write(root, head, file, recheck)
            except _UnfitError as unfit:
                raise FileNotFoundError(f"{unfit}{_EXPECTED.format(root=root)}") from None
    return file


def _away(root: Path) -> Path:
    mark = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return cache_folder() / "captions" / f"{root.name}-{mark}"


def _is_current(file: Path, head: Head) -> bool:
    try:
        return open_index(file)[1] == head
    except (OSError, ValueError):  # pyarrow's own are among them
        return False


def _parts(root: Path, kind: str, settle: bool = False) -> dict[str, str]:
    """The parts of a set with their stamps, sorted by name.

    Args:
        settle: wait until the last change is as long ago as ``SETTLED``, so that any later one
            gives another time.
    """
    stamps: dict[str, str] = {}
    latest = 0.0
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if kind == "pairs":
                wanted = entry.is_dir()
            else:
                wanted = entry.name.endswith(".tar") if kind == "shards" else _is_listing(entry)
            if wanted:
                status = entry.stat()
                size = 0 if kind == "pairs" else status.st_size
                stamps[entry.name] = f"{status.st_mtime_ns} {size}"
                latest = max(latest, status.st_mtime)
    if kind == "pairs" and _holds_pairs(root):
        # Its own time changes with the index that is written into it, so its names stand for it.
        names = sorted(name for name in _names(root) if name not in (INDEX, SKIPPED, *stamps))
        stamps["."] = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    remaining = latest + SETTLED - time.time()
    if settle and 0 < remaining <= SETTLED:  # a time in the future is never waited for
        time.sleep(remaining)
        return _parts(root, kind)
    if kind == "manifests" and not stamps:
        file = next(root / name for name in sorted(_names(root)) if _is_manifest(name))
        raise ValueError(
            f"the manifest {file} has the columns {', '.join(columns(file))}; it needs one of "
            f"paths ({', '.join(PATH_COLUMNS)}) and one of captions ({', '.join(CAPTION_COLUMNS)})"
            f"; of labelled images it is called manifest.csv and has a column `{LABEL_COLUMN}`"
        )
    return dict(sorted(stamps.items()))


def _is_listing(entry: "os.DirEntry[str]") -> bool:
    return _is_manifest(entry.name) and None not in _path_and_caption(Path(entry.path))


# --------------------------------------------------------------------------- looking at images


class Row(NamedTuple):
    """One pair, without its part."""

    key: str
    caption: str
    width: int
    height: int
    offset: int
    size: int
    stamp: int


class Skipped(NamedTuple):
    """What is left out, and why: a kind, then details after a colon."""

    key: str
    reason: str


class _UnfitError(Exception):
    """An image, its caption or the whole set cannot be used; says why."""


Result = Row | Skipped
Look = Callable[[], Result]  # a file that is still to be looked at; done in a thread


def _measure(source: Path | BinaryIO) -> tuple[int, int]:
    """Width and height as the header has them."""
    if isinstance(source, Path) and (kind := special_kind(source)):
        raise _UnfitError(kind)
    try:
        with Image.open(source) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise _UnfitError("unreadable image: not in a known format") from error
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise _UnfitError(f"unreadable image: {error or type(error).__name__}") from error
    if max(width, height) > MOST_EXTREME * min(width, height):
        raise _UnfitError(f"aspect ratio over {MOST_EXTREME}: {width} x {height}")
    return width, height


def _words(text: object) -> str:
    """A caption in single spaces, and in characters that can be stored."""
    if not isinstance(text, str):
        raise _UnfitError("no caption")
    words = " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())
    if not words:
        raise _UnfitError("blank caption")
    return words


def _caption(as_json: bytes | None, as_text: bytes | None) -> str:
    """From ``{"caption": ...}`` where that holds one, else from the text file."""
    reason = "no caption"
    if as_json is not None:
        try:
            about = json.loads(as_json)
            if isinstance(about, dict) and isinstance(about.get("caption"), str):
                return _words(about["caption"])
        except (ValueError, RecursionError):
            reason = "no caption: its file is not JSON"
    if as_text is None:
        raise _UnfitError(reason)
    try:
        return _words(as_text.decode("utf-8-sig"))
    except UnicodeDecodeError:  # an older file; Latin-1 reads any bytes, and most of those rightly
        return _words(as_text.decode("latin-1"))


def _stamp(key: str, *files: os.stat_result) -> int:
    """64 bits, as a signed integer."""
    text = " ".join([key, *(f"{file.st_size} {file.st_mtime_ns}" for file in files)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _storable(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pairs(root: Path, part: str, old: "_Old | None") -> Iterator[Look]:
    """Every image of a directory."""
    folder = root / part
    names = sorted(_names(folder))
    present = set(names)
    for name in names:
        if is_image_name(name):
            stem = name.rpartition(".")[0]
            as_json, as_text = (
                folder / caption if caption in present else None
                for caption in (f"{stem}.json", f"{stem}.txt")
            )
            key = name if part == "." else f"{part}/{name}"
            yield partial(_look_at_pair, key, folder / name, as_json, as_text, old)


def _look_at_pair(
    key: str, image: Path, as_json: Path | None, as_text: Path | None, old: "_Old | None"
) -> Result:
    if not _storable(key):
        return Skipped(key, "its name is not in UTF-8")
    try:
        status = image.stat()
        beside = [path for path in (as_json, as_text) if path]
        stamp = _stamp(key, status, *(path.stat() for path in beside))
        if old and (row := old.find(stamp)) is not None:
            return row
        caption = _caption(
            as_json.read_bytes() if as_json else None, as_text.read_bytes() if as_text else None
        )
        return Row(key, caption, *_measure(image), -1, status.st_size, stamp)
    except _UnfitError as unfit:
        return Skipped(key, str(unfit))
    except OSError as error:
        return Skipped(key, f"unreadable file: {error.strerror}")


def _listed(root: Path, part: str, old: "_Old | None") -> Iterator[Look]:
    """Every line of a manifest."""
    file = root / part
    path_column, caption_column = _path_and_caption(file)
    assert path_column is not None and caption_column is not None  # else it were no part
    try:
        for batch in _read_columns(file, [path_column, caption_column]):
            paths, captions = (column.to_pylist() for column in batch.columns)
            for path, caption in zip(paths, captions, strict=True):
                yield partial(_look_at_line, root, path, caption, old)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the manifest {file} cannot be read: {error}") from error


def _read_columns(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if file.suffix != ".parquet":
        with pyarrow.csv.open_csv(
            file,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter(file), newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
            ),
        ) as batches:
            yield from batches
        return
    with pyarrow.parquet.ParquetFile(file) as table:
        for column in columns:
            kind = table.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ValueError(
                    f"the column `{column}` of the manifest {file} holds {kind}, expected text; "
                    "images inside a table are not read, write them as files"
                )
        for batch in table.iter_batches(BATCH, columns=columns):
            yield batch.select(columns)


def _look_at_line(root: Path, path: str | None, caption: str | None, old: "_Old | None") -> Result:
    if not path:
        return Skipped("", "no path")
    try:
        words = _words(caption)
        status = (root / path).stat()
        stamp = _stamp(path, status)
        if old and (row := old.find(stamp)) is not None:
            return row._replace(caption=words)
        return Row(path, words, *_measure(root / path), -1, status.st_size, stamp)
    except _UnfitError as unfit:
        return Skipped(path, str(unfit))
    except (OSError, ValueError) as error:  # ValueError: a null character
        return Skipped(path, f"unreadable file: {getattr(error, 'strerror', error)}")


def _sharded(root: Path, part: str, _old: "_Old | None") -> Iterator[Look]:
    """Every image of a shard."""
    shard = root / part
    members, fault = read_members(shard)
    if fault:
        log.warning("%s: %s; the %d files before that are used", shard, fault, len(members))
        yield partial(Skipped, part, fault)
    captions = {
        member.name: member for member in members if member.name.endswith((".json", ".txt"))
    }
    shards = OpenShards()

    def read(member: Member, most: int | None = None) -> bytes:
        size = member.size if most is None else min(most, member.size)
        return shards.read(shard, member.offset, size)

    def look(member: Member) -> Result:
        key, stem = f"{part}/{member.name}", member.name.rpartition(".")[0]
        if not _storable(key):
            return Skipped(key, "its name is not in UTF-8")
        found = [captions.get(f"{stem}.{kind}") for kind in ("json", "txt")]
        try:
            words = _caption(*(read(caption) if caption else None for caption in found))
            try:
                size = _measure(io.BytesIO(read(member, HEADER)))
            except _UnfitError as unfit:
                if member.size <= HEADER or str(unfit).startswith("aspect"):
                    raise
                size = _measure(io.BytesIO(read(member)))  # a profile or preview comes first
            return Row(key, words, *size, member.offset, member.size, 0)
        except _UnfitError as unfit:
            return Skipped(key, str(unfit))
        except OSError as error:
            return Skipped(key, f"unreadable file: {error.strerror}")

    for member in members:
        if is_image_name(member.name):
            yield partial(look, member)


READERS = {"pairs": _pairs, "shards": _sharded, "manifests": _listed}


# ------------------------------------------------------------------------------------- writing


class _Old:
    """The index that was there before: what need not be looked at again."""

    def __init__(self, file: Path) -> None:
        reader, self.head = open_index(file)
        self.table = reader.read_all()  # memory-mapped, so nothing is read yet
        self.numbers = {name: number for number, name in enumerate(self.head.parts)}

    def rows(self, part: str) -> pa.Table:
        """All rows of a part; the parts of an index are in ascending order."""
        first, last = np.searchsorted(
            self._parts, [self.numbers[part], self.numbers[part] + 1]
        ).tolist()
        return self.table.slice(first, last - first)

    def find(self, stamp: int) -> Row | None:
        """The row with this stamp."""
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


class _Writer:
    """Gathers rows and tables into record batches of ``BATCH`` rows."""

    def __init__(self, file: Path, head: Head) -> None:
        about = {"version": VERSION, "layout": head.layout, "parts": list(head.parts.items())}
        self.schema = SCHEMA.with_metadata({"caption_set": json.dumps(about)})
        self.writer = pa.ipc.new_file(str(file), self.schema)
        self.rows: list[Row] = []
        self.tables: list[pa.Table] = []
        self.waiting = 0  # rows in tables
        self.written = 0

    def add(self, row: Row, part: int) -> None:
        self.rows.append(row)
        if len(self.rows) >= BATCH:
            self.end_part(part)

    def end_part(self, part: int) -> None:
        """The rows that were added since are of this part."""
        if self.rows:
            values = dict(zip(Row._fields, map(list, zip(*self.rows, strict=True)), strict=True))
            values["part"] = [part] * len(self.rows)
            self.copy(pa.table({name: values[name] for name in SCHEMA.names}, SCHEMA), part)
            self.rows = []

    def copy(self, table: pa.Table, part: int) -> None:
        number = pa.array(np.full(len(table), part, np.int32))
        place = SCHEMA.get_field_index("part")
        table = table.replace_schema_metadata().set_column(place, SCHEMA.field(place), number)
        self.tables.append(table)
        self.waiting += len(table)
        if self.waiting >= BATCH:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            whole = pa.concat_tables(self.tables).combine_chunks()
            self.writer.write_table(whole.replace_schema_metadata(self.schema.metadata), BATCH)
            self.written += self.waiting
        self.tables, self.waiting = [], 0

    def close(self) -> None:
        self.flush()
        self.writer.close()


def _write(root: Path, head: Head, file: Path, recheck: bool) -> None:
    try:
        old = _Old(file)
    except (OSError, ValueError):
        old = None
    if old and old.head.layout != head.layout:
        old = None
    kept = {
        part
        for part, stamp in head.parts.items()
        if old and not recheck and old.head.parts.get(part) == stamp
    }
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(file))
        skipped_file = stack.enter_context(atomic_path(file.with_name(SKIPPED)))
        pool = stack.enter_context(ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4)))
        bar = stack.enter_context(tqdm(desc=f"{root.name}: index", unit="image"))
        lines = stack.enter_context(
            skipped_file.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        )
        table = csv.writer(lines)
        table.writerow(("key", "reason", "part"))

        def skip(key: str, reason: str, part: str) -> None:
            table.writerow((key, reason, part))
            reasons[reason.partition(":")[0]] += 1
            if len(examples) < 3:
                examples.append(f"{key} ({reason})")

        for line in _skipped_before(file.with_name(SKIPPED)):
            if line[2] in kept:
                skip(*line)
        writer = _Writer(temporary, head)
        stack.callback(writer.writer.close)
        for number, part in enumerate(head.parts):
            if number % 64 == 0:
                bar.set_postfix_str(f"{number} of {len(head.parts)} parts")
            if old and part in kept:
                writer.copy(old.rows(part), number)
                continue
            for result in _in_order(pool, READERS[head.layout](root, part, old)):
                bar.update()
                if isinstance(result, Row):
                    writer.add(result, number)
                else:
                    skip(result.key, result.reason, part)
            writer.end_part(number)
        writer.close()
        total = writer.written
        if not total:
            raise _UnfitError(  # an OSError would be taken for one of writing
                f"{root}: none of {reasons.total()} image-caption pairs can be used: "
                + (", ".join(examples) or "there are no images")
            )
    left_out = (
        f"; {reasons.total()} left out ("
        + ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        + f"), listed in {file.with_name(SKIPPED)}"
        if reasons
        else ""
    )
    log.log(
        logging.WARNING if reasons else logging.INFO,
        "%s: %d image-caption pairs in %d %s%s",
        *(root, total, len(head.parts), _NAMES[head.layout], left_out),
    )


_NAMES = {"pairs": "directories", "shards": "shards", "manifests": "manifests"}
T = TypeVar("T")


def _in_order(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], block: int = 128, ahead: int = 32
) -> Iterator[T]:
    """The tasks' results in order; done in blocks, of which only so many are under way."""
    tasks = iter(tasks)
    running: deque[Future[list[T]]] = deque()
    while True:
        while len(running) < ahead and (some := list(islice(tasks, block))):
            running.append(pool.submit(_all_of, some))
        if not running:
            return
        yield from running.popleft().result()


def _all_of(tasks: list[Callable[[], T]]) -> list[T]:
    return [task() for task in tasks]


def _skipped_before(file: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for line in islice(csv.reader(lines), 1, None):
                if len(line) == 3:
                    yield line[0], line[1], line[2]
    except (OSError, ValueError, csv.Error):
        return


def main(argv: Sequence[str] | None = None) -> None:
    """Index as the command line says and print where the index is."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.caption_index",
        description="Index the image-caption pairs of a folder, looking at every file.",
    )
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(build(args.folder.expanduser(), recheck=True))


if __name__ == "__main__":
    main()
