"""Reads the pairs of a directory, a tar shard or a manifest: captions and the headers of images."""

import codecs
import hashlib
import io
import json
import logging
import os
import stat
import sys
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image, UnidentifiedImageError

from datasets.caption_index.layouts import dialect, names, path_and_caption
from datasets.image_files import PICTURES, ending, is_image_name
from datasets.reading import MOST_EXTREME
from utilities.captions import join
from utilities.checksums import changes
from utilities.files import special_kind

LOG = logging.getLogger(__name__)

TEXTS = (".json", ".txt")  # endings of caption files, the first that holds a caption counts
MOST_TEXT = 1 << 20  # bytes of a caption file
NO_DECODER = "{}: no decoder for it"
HEADER = 1 << 15  # bytes of a shard's image that are read for its size; more only if needed


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
    """An image that cannot be used, and why: a kind, then details after a colon."""

    key: str
    reason: str


class UnfitError(Exception):
    """An image or its caption cannot be used; the message says why."""


Find = Callable[[int], Row | None]  # by stamp, a row that need not be read again
Look = Callable[[], Row | Skipped]  # a task for one image; called in a thread


def read_pairs(root: Path, part: str, find: Find) -> Iterator[Look]:
    folder = root / part
    present = sorted(names(folder))
    others = set(present)

    def read(image: Path, stem: str, key: str) -> Row:
        beside = [folder / name if (name := stem + end) in others else None for end in TEXTS]
        status = _status(image)
        stamp = _stamp(key, status, *(_status(path, "caption file") for path in beside if path))
        if (row := find(stamp)) is not None:
            return row
        caption = _captions(*(path.read_bytes() if path else None for path in beside))
        return Row(key, caption, *measure(image), -1, status.st_size, stamp)

    for name in present:
        key = name if part == "." else f"{part}/{name}"
        if is_image_name(name):
            yield partial(_look, partial(read, folder / name, name.rpartition(".")[0]), key)
        elif ending(name) in PICTURES:
            yield partial(Skipped, key, NO_DECODER.format(ending(name)))
        elif part != "." and not name.endswith(TEXTS) and (folder / name).is_dir():
            yield partial(Skipped, key, "nested folder")


def read_manifest(root: Path, part: str, find: Find) -> Iterator[Look]:
    file = root / part
    path_column, caption_column = path_and_caption(file)
    assert path_column is not None and caption_column is not None  # else it would not be a part

    def read(captions: object, path: str) -> Row:
        words, status = _words(captions), _status(root / path)
        stamp = _stamp(path, status)
        if (row := find(stamp)) is not None:
            return row._replace(caption=words)
        return Row(path, words, *measure(root / path), -1, status.st_size, stamp)

    def lines() -> Iterator[tuple[str | None, Any]]:
        for batch in _read_columns(file, path_column, caption_column):
            for path, captions in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                yield path and os.path.normpath(path), captions  # "./a.jpg" is "a.jpg"

    try:
        # Captions of one path may lie anywhere in the table: only those of such paths are held.
        hashes, counts = np.unique(
            np.fromiter((hash(path) for path, _ in lines()), np.int64), return_counts=True
        )
        repeated = set(hashes[counts > 1].tolist())
        several: dict[str, list[Any]] = {}
        for path, captions in lines() if repeated else ():
            if path and hash(path) in repeated and captions is not None:
                several.setdefault(path, []).extend(
                    captions if isinstance(captions, list) else [captions]
                )
        done: set[str] = set()
        for path, captions in lines():
            if not path:
                yield partial(Skipped, "", "no path")
            elif hash(path) not in repeated:
                yield partial(_look, partial(read, captions), path)
            elif path not in done:
                done.add(path)
                yield partial(_look, partial(read, several.get(path)), path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the manifest {file} cannot be read: {error}") from error


def read_shard(root: Path, part: str, find: Find) -> Iterator[Look]:
    shard = root / part
    members, fault = read_members(shard)
    if fault:
        LOG.warning("%s: %s; using the %d files before that", shard, fault, len(members))
        yield partial(Skipped, part, fault)
    texts = {member.name: member for member in members if member.name.endswith(TEXTS)}
    shards = OpenShards()

    def content(member: Member, most: int = sys.maxsize) -> bytes:
        return shards.read(shard, member.offset, min(most, member.size))

    def read(member: Member, key: str) -> Row:
        stem = member.name.rpartition(".")[0]
        found = [texts.get(f"{stem}{suffix}") for suffix in TEXTS]
        words = _captions(*(content(text) if text else None for text in found))
        try:
            size = measure(io.BytesIO(content(member, HEADER)))
        except UnfitError as unfit:
            if member.size <= HEADER or str(unfit).startswith("aspect"):
                raise
            size = measure(io.BytesIO(content(member)))  # a profile or preview comes first
        return Row(key, words, *size, member.offset, member.size, 0)

    for member in members:
        if is_image_name(member.name):
            yield partial(_look, partial(read, member), f"{part}/{member.name}")
        elif ending(member.name) in PICTURES:
            reason = NO_DECODER.format(ending(member.name))
            yield partial(Skipped, f"{part}/{member.name}", reason)


READERS = {"pairs": read_pairs, "shards": read_shard, "manifests": read_manifest}


def _look(read: Callable[[str], Row], key: str) -> Row | Skipped:
    """Return the row of ``key``, or why it cannot be used."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return Skipped(repr(os.fsencode(key)), "its name is not in UTF-8")
    try:
        return read(key)
    except UnfitError as unfit:
        return Skipped(key, str(unfit))
    except (OSError, ValueError) as error:  # ValueError: a null character in a path
        return Skipped(key, f"unreadable file: {getattr(error, 'strerror', None) or error}")


def _status(file: Path, what: str = "image") -> os.stat_result:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a named pipe would never end
        kind = special_kind(file)
        raise UnfitError(kind if what == "image" else f"{what} that is a {kind}")
    if what != "image" and status.st_size > MOST_TEXT:
        raise UnfitError(f"{what} over {MOST_TEXT:,} bytes")
    return status


def measure(source: Path | BinaryIO) -> tuple[int, int]:
    """Return the width and height in an image's header."""
    try:
        with Image.open(source) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise UnfitError("unreadable image: not in a known format") from error
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise UnfitError(f"unreadable image: {error or type(error).__name__}") from error
    if max(width, height) > MOST_EXTREME * min(width, height):
        raise UnfitError(f"aspect ratio over {MOST_EXTREME}: {width} x {height}")
    return width, height


def _words(captions: object) -> str:
    """Return one or several captions as they are stored, a line each."""
    if captions is None:
        raise UnfitError("no caption")
    try:
        words = join(captions, "caption")
    except ValueError as error:
        raise UnfitError(f"no caption: {error}") from error
    if not words:
        raise UnfitError("blank caption")
    return words


def _captions(as_json: bytes | None, as_text: bytes | None) -> str:
    """Return those of ``{"caption": ...}`` if it has some, else the lines of the text file."""
    unfit = UnfitError("no caption")
    if as_json is not None:
        try:
            about = json.loads(as_json)
            return _words(about.get("caption") if isinstance(about, dict) else None)
        except UnfitError as error:
            unfit = error
        except (ValueError, RecursionError):
            unfit = UnfitError("no caption: its file is not JSON")
    if as_text is None:
        raise unfit
    wide = as_text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return _words(as_text.decode("utf-16" if wide else "utf-8-sig").splitlines())
    except UnicodeDecodeError:  # an older file; Latin-1 reads any bytes, and most of those rightly
        return _words(as_text.decode("latin-1").splitlines())


def _stamp(key: str, *files: os.stat_result) -> int:
    """Return 64 bits, as a signed integer, that change with the key and the files."""
    text = " ".join([key, *map(changes, files)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _read_columns(file: Path, path: str, caption: str) -> Iterator[pa.RecordBatch]:
    """Yield both columns of a table, in this order."""
    if file.suffix != ".parquet":
        encoding, delimiter = dialect(file)
        reading = pyarrow.csv.ReadOptions(encoding=encoding.removesuffix("-sig"))
        parsing = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        converting = pyarrow.csv.ConvertOptions(
            include_columns=[path, caption],
            column_types=dict.fromkeys((path, caption), pa.string()),
        )
        with pyarrow.csv.open_csv(file, reading, parsing, converting) as batches:
            yield from batches
        return
    with pyarrow.parquet.ParquetFile(file) as table:
        for column in (path, caption):
            kind = table.schema_arrow.field(column).type
            listing = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            inner = kind.value_type if listing and column == caption else kind
            if pa.types.is_dictionary(inner):  # categories of pandas
                inner = inner.value_type
            if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
                raise ValueError(
                    f"the column `{column}` of the manifest {file} holds {kind}, expected text; "
                    "images inside a table are not read, write them as files"
                )
        for batch in table.iter_batches(columns=[path, caption]):
            yield batch.select([path, caption])


class Member(NamedTuple):
    name: str  # of a file inside a shard
    offset: int  # of its first byte in the shard
    size: int  # bytes


def read_members(shard: Path) -> tuple[list[Member], str]:
    """Return the whole files of an uncompressed tar in order, and what is wrong with it or ""."""
    members: list[Member] = []
    if kind := special_kind(shard):
        return members, kind
    length = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isfile() and member.offset_data + member.size <= length:
                    members.append(Member(member.name, member.offset_data, member.size))
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError) as error:
        return members, f"cut short or no tar: {error}"
    # tarfile stops silently where it cannot read a header; a sound tar has a block of zeros there.
    with shard.open("rb") as file:
        file.seek(end)
        sound = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    return members, "" if sound else f"cut short or damaged at byte {end} of {length}"


class OpenShards:
    """Reads files inside tar shards by path, offset and size; keeps the last used shards open.

    Reads do not move the position in a file, which forked workers share.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self._files: OrderedDict[Path, int] = OrderedDict()  # descriptors, the last used last
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the end of the file; raise OSError if unreadable."""
        with self._lock:  # another thread must not close the file in between
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) > self.most:
                    os.close(self._files.popitem(last=False)[1])
            self._files.move_to_end(path)
            return os.pread(self._files[path], size, offset)

    def close(self) -> None:
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.most,)
